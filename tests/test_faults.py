"""Part II: nothing that a run meets may cost the run: odd environments, outputs, disks, files."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SCRIPTS,
    Count,
    OneStep,
    each,
    each_kind,
    kinds,
    register,
    rows,
    tiny_args,
    trained,
)

# Part II is the same in all five (test_structure.py), so two of them stand for all.
SCRIPTS = [s for s in SCRIPTS if s.__name__ in ("a2c", "ppo_continuous")] or SCRIPTS
REAL = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}


def command(script, tmp_path, *flags):
    """The command line of a run of 1,024 steps."""
    return [sys.executable, str(ROOT / f"{script.__name__}.py"), "--env-id",
            REAL[kinds(script)[0]], "--num-envs", "2", "--total-timesteps", "1024", "--no-cuda",
            "--eval-episodes", "1", "--run-dir", str(tmp_path), *flags]


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(script, words, *flags): exit code 2 and one line with all the words."""
    def call(script, words, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1 and err.endswith("\n"), err
        assert all(c.isprintable() for c in err[:-1]), ascii(err)
        assert not [word for word in words if word not in err], err
    return call


# --------------------------------------------------------------------------------------------------
# 1. What is printed
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
def test_help_in_ascii(script, tmp_path):
    """The flags' texts have γ and λ: printed, replaced."""
    done = subprocess.run([*command(script, tmp_path)[:2], "--help"], capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and not done.stderr and b"--total-timesteps" in done.stdout


@pytest.mark.parametrize("script, encoding", list(zip(SCRIPTS, ["ascii", "cp1252", "cp437"])))
def test_code_pages(script, encoding, tmp_path):
    """A run whose name no code page has."""
    done = subprocess.run(command(script, tmp_path, "--exp-name", "五γ"), capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert b"evaluation, 1 episodes" in done.stdout


@pytest.mark.parametrize("script, stdout", list(zip(SCRIPTS, ["closed pipe", "/dev/full"])))
def test_stdout_that_takes_nothing(script, stdout, tmp_path):
    """`| head -1`, or a redirection to a full disk: the run goes on to its end."""
    if stdout == "/dev/full":
        out = os.open(stdout, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    done = subprocess.run(command(script, tmp_path), stdout=out, stderr=subprocess.PIPE)
    os.close(out)
    run, = tmp_path.iterdir()
    assert not done.stderr and done.returncode == 0
    assert (run / "evaluation.json").exists() and (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_the_shell_closed(closed, tmp_path):
    """Their numbers become those of our files: nothing may be written there by mistake."""
    line = " ".join(f"'{word}'" for word in command(SCRIPTS[0], tmp_path))
    done = subprocess.run(["sh", "-c", f"{line} --total-timesteps 4096 {closed}"])
    run, = tmp_path.iterdir()
    assert done.returncode == 0 and (run / "evaluation.json").exists()
    assert all(row["global_step"].isdigit() for row in rows(run))


def test_train_prints_in_ascii(tmp_path):
    """train() without main(), where nothing has been told to replace letters."""
    code = f"""if True:
        import a2c
        a2c.train(a2c.Args(num_envs=2, num_steps=8, total_timesteps=64, cuda=False,
                           exp_name="γ", eval_episodes=1, run_dir={str(tmp_path)!r}))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "evaluation, 1 episodes" in done.stdout, done.stderr


# --------------------------------------------------------------------------------------------------
# 2. What an environment returns
# --------------------------------------------------------------------------------------------------
class Odd(Count):
    """`what(obs, reward, terminated, truncated, info)` is what a step returns."""

    def __init__(self, what, kind="discrete", **rest):
        super().__init__(kind, **rest)
        self.what = what

    def step(self, action):
        return self.what(*super().step(action))


@pytest.mark.parametrize("what", [
    lambda o, r, te, tr, i: (o, r, te, tr, {"episode": 7, "final_obs": 1, "final_info": {"l": 2}}),
    lambda o, r, te, tr, i: (o, r, te, tr, {"episode": {"r": [1, 2]}, "_episode": None}),
    lambda o, r, te, tr, i: (o, np.array([r]), te, tr, i),
    lambda o, r, te, tr, i: (o, np.array(r), te, tr, i),
    lambda o, r, te, tr, i: (o, np.array([[r]], np.float32), te, tr, i),
    lambda o, r, te, tr, i: (o, torch.tensor(r), te, tr, i),
    lambda o, r, te, tr, i: (o, int(r), np.bool_(te), int(tr), None),
    lambda o, r, te, tr, i: (list(o), r, te, tr, i)])
@each_kind(SCRIPTS)
def test_what_is_a_number_is_a_reward(script, kind, what, tmp_path):
    """Infos of any kind, and a number in any wrapping: the run is that of the plain environment."""
    _, plain_agent, plain = trained(script, tmp_path, env_id=register(Count, kind=kind))
    _, agent, run = trained(script, tmp_path, env_id=register(Odd, what=what, kind=kind))
    assert rows(run) == rows(plain)
    assert all(map(torch.equal, agent.parameters(), plain_agent.parameters()))


@pytest.mark.parametrize("what", [
    lambda o, r, te, tr, i: (o, None, te, tr, i),
    lambda o, r, te, tr, i: (o, "much", te, tr, i),
    lambda o, r, te, tr, i: (o, np.array([r, r]), te, tr, i),
    lambda o, r, te, tr, i: (o, r, te, i),
    lambda o, r, te, tr, i: (o, r, te, tr, i, 6),
    lambda o, r, te, tr, i: None,
    lambda o, r, te, tr, i: (np.append(o, 1), r, te, tr, i),
    lambda o, r, te, tr, i: (o[:1], r, te, tr, i),
    lambda o, r, te, tr, i: (o[:, None], r, te, tr, i),
    lambda o, r, te, tr, i: (None, r, te, tr, i),
    lambda o, r, te, tr, i: ({"obs": o}, r, te, tr, i)])
@each(SCRIPTS)
def test_what_is_no_transition(script, what, tmp_path):
    """One line that names the environment and what it returned."""
    env_id = register(Odd, what=what, kind=kinds(script)[0])
    with pytest.raises(script.UserError, match="(?s)Odd.*step returned") as error:
        trained(script, tmp_path, env_id=env_id)
    assert "shape (2,)" in str(error.value)


class OddReset(Count):
    def __init__(self, what, kind="discrete", **rest):
        super().__init__(kind, **rest)
        self.what = what

    def reset(self, **rest):
        return self.what(*super().reset(**rest))


@pytest.mark.parametrize("what", [lambda obs, info: obs, lambda obs, info: (obs[:1], info),
                                  lambda obs, info: (None, info), lambda obs, info: None])
@each(SCRIPTS)
def test_what_is_no_reset(script, what, tmp_path):
    with pytest.raises(script.UserError, match="(?s)OddReset.*reset returned"):
        trained(script, tmp_path, env_id=register(OddReset, what=what, kind=kinds(script)[0]))


# --------------------------------------------------------------------------------------------------
# 3. What fails only after the training
# --------------------------------------------------------------------------------------------------
class OneTimeOnly(Count):
    """Cannot be made again after the training's environments, or fails when it is played again."""
    made = 0

    def __init__(self, where, kind="discrete", **rest):
        super().__init__(kind, **rest)
        type(self).made += 1
        self.where, self.again = where, type(self).made > 2
        if self.again and where == "made":
            raise RuntimeError("the licence is in use")

    def step(self, action):
        if self.again:
            raise ZeroDivisionError
        return super().step(action)


@pytest.mark.parametrize("where", ["made", "stepped"])
@each(SCRIPTS)
def test_a_failing_evaluation(script, where, tmp_path, monkeypatch):
    """One line that says that the training is saved; its files are complete."""
    monkeypatch.setattr(OneTimeOnly, "made", 0)
    env_id = register(OneTimeOnly, where=where, kind=kinds(script)[0])
    with pytest.raises(script.UserError, match="complete and saved.*(licence|ZeroDivision)"):
        trained(script, tmp_path, env_id=env_id, eval_episodes=2)
    run, = tmp_path.iterdir()
    assert int(rows(run)[-1]["global_step"]) >= 64 and (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("fault", ["nothing to show", "no film"])
@each(SCRIPTS)
def test_a_film_is_tried_before_the_training(script, fault, tmp_path, monkeypatch):
    class Filmed(Count):
        metadata = {"render_modes": ["rgb_array"], "render_fps": None}

        def render(self):
            return None if fault == "nothing to show" else np.zeros((64, 64, 3), np.uint8)

    if fault == "no film":
        def stop(*rest, **options):
            raise OSError("no encoder")
        monkeypatch.setattr("moviepy.video.io.ImageSequenceClip.ImageSequenceClip.write_videofile",
                            stop)
    with pytest.raises(script.UserError, match="--capture-video"):
        trained(script, tmp_path, env_id=register(Filmed, kind=kinds(script)[0]), eval_episodes=1,
                capture_video=True)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# 4. Other ways in than the command line
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
def test_pasted_into_a_notebook(script, tmp_path, monkeypatch):
    """No __file__, another docstring, a kernel's flags: main() trains with the defaults."""
    cell = types.ModuleType("notebook_cell")
    monkeypatch.setitem(sys.modules, "notebook_cell", cell)
    exec((ROOT / f"{script.__name__}.py").read_text(), cell.__dict__)
    assert "__file__" not in vars(cell) and cell.ALGORITHM == "notebook"
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "/tmp/kernel-1.json"])
    seen = []
    monkeypatch.setattr(cell, "train", seen.append)
    cell.__doc__ = None
    cell.main()
    assert seen == [cell.Args()]


# --------------------------------------------------------------------------------------------------
# 5. Numbers
# --------------------------------------------------------------------------------------------------
class Scaled(gym.Env):
    """The observation is one of two numbers; the action that is its index is right."""

    def __init__(self, offset, width, factor=1.0, render_mode=None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Discrete(2)
        self.offset, self.width, self.factor = offset, width, factor

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.right = int(self.np_random.integers(2))
        return np.array([self.offset + self.width * self.right]), {}

    def step(self, action):
        obs = np.array([self.offset + self.width * self.right])
        return obs, self.factor * float(action == self.right), True, False, {}


@pytest.mark.parametrize("offset, width, factor", [
    (1.7e9, 1.0, 1.0), (0.0, 1e-6, 1.0), (1e4, 1e-3, 1.0), (0.0, 1e30, 1.0), (0.0, 1.0, 1e20)])
def test_numbers_that_float32_cannot_hold(offset, width, factor, tmp_path):
    """Unix time, a tiny spread, huge observations or rewards: it learns."""
    script = SCRIPTS[0]
    _, agent, _ = trained(script, tmp_path, env_id=register(
        Scaled, offset=offset, width=width, factor=factor), num_envs=8, num_steps=32,
        total_timesteps=8192, learning_rate=3e-3)
    obs = torch.tensor([[offset], [offset + width]], dtype=torch.float64)
    assert agent.policy(obs).mode.tolist() == [0, 1]


@each([s for s in SCRIPTS if "discrete" in kinds(s)])
def test_what_overflowed_is_named(script, tmp_path):
    env_id = register(Scaled, offset=0.0, width=1.0, factor=1e25)
    with pytest.raises(script.UserError, match=r"rewards 1e\+25"):
        trained(script, tmp_path, env_id=env_id, norm_reward=False, norm_adv=False)
    env_id = register(Scaled, offset=0.0, width=1e45)
    with pytest.raises(script.UserError, match=r"obs reach 1e\+45"):
        trained(script, tmp_path, env_id=env_id, norm_obs=False)
    env_id = register(Scaled, offset=1e200, width=1e199)  # whose square float64 cannot hold
    with pytest.raises(script.UserError, match=r"obs_std is NaN or infinite"):
        trained(script, tmp_path / "2", env_id=env_id, num_envs=8, total_timesteps=128)


# --------------------------------------------------------------------------------------------------
# 6. Resume and evaluate
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
def test_one_run_one_process(script, tmp_path, monkeypatch):
    """While a run is resumed, a second --resume is refused, and changes nothing."""
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    again = dataclasses.replace(args, resume=str(run), total_timesteps=128)
    log, seen = script.Run.log, []

    def log_and_resume(self, *rest):
        log(self, *rest)
        if not seen:
            files = [path for path in run.iterdir() if "tfevents" not in path.name]
            before = [path.read_bytes() for path in files]
            seen.append(True)
            with pytest.raises(script.UserError, match="another process"):
                script.train(again)
            assert before == [path.read_bytes() for path in files]

    monkeypatch.setattr(script.Run, "log", log_and_resume)
    script.train(again)
    assert seen and script.train(again)  # and once it is over, not any more


@each(SCRIPTS)
def test_a_torn_table(script, tmp_path):
    """Where the table's end is lost, the next row begins a line of its own."""
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    whole = (run / "progress.csv").read_bytes()
    (run / "progress.csv").write_bytes(whole[:-15])
    script.train(dataclasses.replace(args, resume=str(run), total_timesteps=128))
    assert len({len(row) for row in rows(run)}) == 1 and None not in rows(run)[-1].values()
    assert whole.startswith((run / "progress.csv").read_bytes()[:whole.rfind(b"\n", 0, -15) + 1])


@pytest.mark.parametrize("tail", ["4,64,to", "\x00\x00\xff", "a,b\n" * 1000, "\n\n,,,\n"])
@each(SCRIPTS)
def test_what_follows_the_checkpoint_is_cut(script, tail, tmp_path):
    env_id = register(OneStep, kind=kinds(script)[0])
    args, _, run = trained(script, tmp_path, env_id=env_id)
    before = (run / "progress.csv").read_bytes()
    (run / "progress.csv").write_bytes(before + tail.encode("latin-1"))
    script.train(dataclasses.replace(args, resume=str(run), total_timesteps=128))
    assert (run / "progress.csv").read_bytes().startswith(before)
    assert [int(row["iteration"]) for row in rows(run)] == list(range(1, len(rows(run)) + 1))


@each(SCRIPTS)
def test_a_smaller_budget(script, tmp_path, refused):
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    before = (run / "checkpoint.pt").read_bytes(), (run / "args.json").read_bytes()
    refused(script, ["--total-timesteps 48", "64 steps"], "--resume", run, "--total-timesteps", 48)
    assert before == ((run / "checkpoint.pt").read_bytes(), (run / "args.json").read_bytes())


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize("name, value", [("activation", "relu"), ("norm_obs", None),
                                         ("clip_obs", 1.0), ("norm_reward", None),
                                         ("clip_reward", 1.0), ("env_id", "Acrobot-v1")])
@each(SCRIPTS)
def test_flags_that_give_the_weights_another_meaning(script, name, value, flag, tmp_path, refused):
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    before = (run / "args.json").read_bytes()
    given = f"--{name.replace('_', '-')}"
    if name == "env_id":
        value = register(OneStep, kind=kinds(script)[0])
    flags = [given.replace("--", "--no-", 1)] if value is None else [given, value]
    refused(script, [name], flag, run, "--eval-episodes", 1, *flags)
    assert (run / "args.json").read_bytes() == before


def test_resume_here(tmp_path, monkeypatch):
    """--resume . : the run's own name, for W&B too."""
    script = SCRIPTS[0]
    args, _, run = trained(script, tmp_path, env_id=register(OneStep))
    monkeypatch.chdir(run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    names, wandb = [], pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **options: names.append(options))
    monkeypatch.setattr(wandb, "finish", lambda: None)
    monkeypatch.setattr(wandb, "log", lambda logged: None)
    script.train(dataclasses.replace(args, resume=".", track=True, total_timesteps=128))
    assert names[0]["id"] == names[0]["name"] == run.name and names[0]["dir"] == run.parent


# --------------------------------------------------------------------------------------------------
# 7. Disk and directory
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [300, 4_000, 40_000, 150_000])
def test_a_full_disk(limit, tmp_path):
    """No file may be larger than this: one line that names a file, exit code 2 and no rubbish, or,
    where only TensorBoard's events are too large, a run to its end without the rest of them."""
    resource, script = pytest.importorskip("resource"), SCRIPTS[0]
    done = subprocess.run(command(script, tmp_path, "--total-timesteps", "60000"),
                          capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(
                              resource.RLIMIT_FSIZE, (limit, limit)))
    run, = tmp_path.iterdir()
    assert not list(run.glob("*.tmp"))
    if limit < 150_000:
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "too large" in done.stderr and not (run / "checkpoint.pt").exists()
    else:
        assert done.returncode == 0 and not done.stderr and (run / "checkpoint.pt").exists()


@each(SCRIPTS)
def test_a_full_disk_leaves_the_last_checkpoint(script, tmp_path, monkeypatch):
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    before = (run / "checkpoint.pt").read_bytes()

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(script.UserError, match="checkpoint.pt: No space left"):
        script.train(dataclasses.replace(args, resume=str(run), total_timesteps=128))
    assert (run / "checkpoint.pt").read_bytes() == before and not list(run.glob("*.tmp"))


@each(SCRIPTS)
def test_the_directory_goes(script, tmp_path, refused, monkeypatch):
    """Removed or replaced during the run: one line."""
    log = script.Run.log

    def log_and_remove(self, *rest):
        log(self, *rest)
        if self.dir.exists():
            self.dir.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(script.Run, "log", log_and_remove)
    args = tiny_args(script, env_id=register(OneStep, kind=kinds(script)[0]))
    flags = [x for f in ("env_id", "num_envs", "num_steps", "total_timesteps", "eval_episodes")
             if hasattr(args, f) for x in (f"--{f.replace('_', '-')}", getattr(args, f))]
    if hasattr(args, "num_minibatches"):
        flags += ["--num-minibatches", 2]
    refused(script, ["No such file"], "--run-dir", tmp_path / "runs", *flags)


@pytest.mark.parametrize("module", ["gymnasium", "torch", "tqdm"])
def test_ctrl_c_during_the_imports(module, tmp_path):
    """No traceback, and the exit status of a program that Ctrl-C has ended."""
    script = SCRIPTS[-1]
    (tmp_path / "sitecustomize.py").write_text(f"""if True:
        import os, signal, sys
        class Finder:
            def find_spec(self, name, *rest):
                if name == {module!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        """)
    done = subprocess.run(command(script, tmp_path / "runs"), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------------------------------
# 8. Files from others
# --------------------------------------------------------------------------------------------------
def change(run, **changes):
    """Write these values into the checkpoint, "args.x" into its args."""
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    for name, value in changes.items():
        part, _, name = name.rpartition("__")
        (checkpoint[part] if part else checkpoint)[name] = value
    torch.save(checkpoint, run / "checkpoint.pt")


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each(SCRIPTS)
def test_a_stranger_s_module_is_not_imported(script, flag, tmp_path, refused, monkeypatch):
    """A module that a checkpoint names runs only if the command line names it, too."""
    (tmp_path / "sly_module.py").write_text("import gymnasium\nRAN = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    args, _, run = trained(script, tmp_path / "runs", env_id=register(
        OneStep, kind=kinds(script)[0]))
    env_id = f"sly_module:{args.env_id}"
    change(run, args__env_id=env_id)
    refused(script, ["sly_module", "--env-id"], flag, run)
    assert "sly_module" not in sys.modules
    monkeypatch.setattr(sys, "argv", ["x", flag, str(run), "--env-id", env_id])
    script.main()
    assert "sly_module" in sys.modules
    sys.modules.pop("sly_module")


@pytest.mark.parametrize("changes", [
    {"args__num_envs": "two"}, {"args__num_envs": 2.5}, {"args__num_envs": None},
    {"args__num_envs": -1}, {"args__num_envs": True}, {"args__cuda": 1}, {"args__gamma": "x"},
    {"args__gamma": [0.9]}, {"args__gamma": float("nan")}, {"args__env_id": 3},
    {"args__activation": "sigmoid"}, {"args__exp_name": {}}, {"args__unknown": 1},
    {"args": None}, {"args": 5}, {"progress__step": -5}, {"progress__step": 2**63},
    {"progress__seconds": float("nan")}, {"progress__unlogged": [1, 2]},
    {"progress__last_returns": ["x"]}, {"optimizer": [torch.tensor(0.0)] * 5},
    {"progress__step": "many"}, {"progress__unlogged": 3},
    {"progress": {}}, {"progress": None}, {"algorithm": "\x1b[31mred\x07"}, {"algorithm": None},
    {"agent": {}}, {"agent": 1}, {"optimizer": []}, {"optimizer": None}, {"rng": 1},
    {"rng": torch.zeros(3)}])
@each(SCRIPTS)
def test_wrong_values_in_a_checkpoint(script, changes, tmp_path, refused):
    """One line, without the escape sequences that the file may hold."""
    _, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]))
    change(run, **changes)
    before = (run / "progress.csv").read_bytes()
    refused(script, [], "--resume", run)
    assert (run / "progress.csv").read_bytes() == before


# --------------------------------------------------------------------------------------------------
# 9. Names
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("env_id", [":X-v0", "a:b:c", "a:", "", "X-v0\nrm -rf", "x" * 300,
                                    "../X-v0", "CartPole-v1\x1b[2J", "a.b:X-v0", "X-v",
                                    "caf\udce9-v1"])
@each(SCRIPTS)
def test_names_of_environments(script, env_id, refused, tmp_path):
    refused(script, ["--env-id"], "--env-id", env_id, "--run-dir", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb", "tab\there", "back\\slash", "a/b/../c", "caf\udce9",
                                  "γ五"])
def test_names_of_experiments(name, tmp_path):
    """The run directory stays one directory, under --run-dir, on one line."""
    _, _, run = trained(SCRIPTS[0], tmp_path, env_id=register(OneStep), exp_name=name)
    assert run.parent == tmp_path and not set("\n\t\\") & set(run.name)
    assert json.loads((run / "args.json").read_text())["exp_name"] == name


def test_a_name_of_300_letters(tmp_path):
    script = SCRIPTS[0]
    with pytest.raises(script.UserError, match="File name too long"):
        trained(script, tmp_path, env_id=register(OneStep), exp_name="x" * 300)


def test_the_home_directory(tmp_path, monkeypatch):
    """~ in quotes reaches us as it is."""
    script = SCRIPTS[0]
    monkeypatch.setenv("HOME", str(tmp_path))
    args = tiny_args(script, env_id=register(OneStep), run_dir="~/runs")
    script.train(args)
    run, = (tmp_path / "runs").iterdir()
    again = dataclasses.replace(args, resume=f"~/runs/{run.name}", total_timesteps=128)
    script.train(again)
    assert int(rows(run)[-1]["global_step"]) == 128
    assert script.restore(dataclasses.replace(args, evaluate=f"~/runs/{run.name}"))


@pytest.mark.parametrize("text, value", [("1e6", 1_000_000), ("2.5e5", 250_000),
                                         ("1e06", 1_000_000), ("1000", 1000)])
@each(SCRIPTS)
def test_powers_of_ten(script, text, value, monkeypatch):
    seen = []
    monkeypatch.setattr(script, "train", seen.append)
    monkeypatch.setattr(sys, "argv", ["x", "--total-timesteps", text, "--learning-rate", "1.5e-4"])
    script.main()
    assert seen[0].total_timesteps == value and seen[0].learning_rate == 1.5e-4


@each(SCRIPTS)
def test_only_a_whole_number_is_a_power_of_ten(script, monkeypatch):
    """Names that end in one keep it, and .1e2 is not taken for .100."""
    seen = []
    monkeypatch.setattr(script, "train", seen.append)
    monkeypatch.setattr(sys, "argv", ["x", "--run-dir", "out/lr-1e6", "--exp-name=x-1e3",
                                      "--clip-obs", ".1e2", "--clip-reward", "1.25e1"])
    script.main()
    args = seen[0]
    assert (args.run_dir, args.exp_name, args.clip_obs, args.clip_reward) == (
        "out/lr-1e6", "x-1e3", 10.0, 12.5)


# --------------------------------------------------------------------------------------------------
# Killed at any moment
# --------------------------------------------------------------------------------------------------
KILLED = """if True:
    import os, random, shutil, signal, sys, threading, time
    from pathlib import Path
    from tqdm import tqdm
    tqdm.monitor_interval = 0  # no thread that may hold a lock while this one forks
    tqdm.set_lock(threading.RLock())  # not the one that children share: a killed one would keep it
    sys.path.insert(0, "tests")
    import a2c, conftest
    log = a2c.Run.log

    def log_and_save(self, *rest):
        log(self, *rest)
        self.save()

    a2c.Run.log = log_and_save
    folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    env_id = conftest.register(conftest.OneStep)

    def train(name, resume=None):
        a2c.train(conftest.tiny_args(a2c, env_id=env_id, total_timesteps=3000, exp_name=name,
                                     run_dir=str(folder / name), resume=resume))

    train("whole")
    kills = finished = 0
    while not finished:
        found = list((folder / "killed").glob("*/checkpoint.pt"))
        if not found:
            shutil.rmtree(folder / "killed", ignore_errors=True)
        child = os.fork()
        if not child:
            train("killed", str(found[0].parent) if found else None)
            os._exit(0)
        if kills < 25:
            time.sleep(rng.uniform(0, 0.12))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        finished = os.WIFEXITED(status)
        assert not finished or os.WEXITSTATUS(status) == 0
    print(kills)
"""


def test_killed_at_any_moment(tmp_path):
    """SIGKILL 25 times, at random moments of training, saving and resuming: at last the parameters,
    the rows and TensorBoard's scalars are those of a run that nothing happened to."""
    from test_runs import scalars

    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "1"], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 20
    (whole,), (killed,) = [(tmp_path / name).iterdir() for name in ("whole", "killed")]
    assert rows(killed) == rows(whole)
    a, b = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, killed))
    assert all(torch.equal(a["agent"][name], b["agent"][name]) for name in a["agent"])
    assert all(map(torch.equal, a["optimizer"], b["optimizer"]))
    for tag in ("losses/policy_loss", "charts/episodic_return"):
        assert scalars(killed, tag) == scalars(whole, tag)
