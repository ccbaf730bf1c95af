"""The command line: flags, help, and one line for every bad input."""
import dataclasses
import importlib
import math
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    LADDER,
    ROOT,
    SCRIPTS,
    Count,
    Spaces,
    each,
    each_kind,
    kinds,
    register,
    rows,
    trained,
)

BOX = gym.spaces.Box(-1, 1, (3,), np.float32)
OTHER = {"ppo_discrete": ("ppo_continuous", BOX),
         "ppo_continuous": ("ppo_discrete", gym.spaces.Discrete(2))}
ACTION = {"discrete": gym.spaces.Discrete(2), "continuous": BOX}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(script, *flags): call main() in an empty directory → (exit code, stdout, stderr)."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        code = 0
        try:
            script.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def parsed(run, monkeypatch):
    """parsed(script, *flags): the Args that main() would train or evaluate with."""
    def call(script, *flags):
        seen = []
        monkeypatch.setattr(script, "train", seen.append)
        monkeypatch.setattr(script, "evaluate", lambda agent, args, *rest: seen.append(args))
        code, _, err = run(script, *flags)
        assert (code, err) == (0, "") and len(seen) == 1
        return seen[0]
    return call


@pytest.fixture
def refused(run, tmp_path):
    """refused(script, words, *flags): exit code 2, one line with all the words, no files; it speaks
    of no flag that the script does not have."""
    def call(script, words, *flags):
        code, out, err = run(script, *flags)
        assert code == 2
        assert len(err.splitlines()) == 1 and err.startswith(f"{script.__name__}: "), err
        assert "Traceback" not in err
        missing = [word for word in words if word not in err]
        assert not missing, f"{missing} not in: {err}"
        known = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(script.Args)}
        strange = set(re.findall(r"--[a-z][a-z-]+", err)) - known
        assert not strange, f"{strange} in: {err}"
        assert not list((tmp_path / "empty").iterdir()), "nothing may be written"
    return call


def small(script, env_id):
    """Flags of a run of 64 steps."""
    names = {f.name for f in dataclasses.fields(script.Args)}
    flags = {"env_id": env_id, "num_envs": 2, "num_steps": 8, "num_minibatches": 2,
             "update_epochs": 1, "total_timesteps": 64, "eval_episodes": 0}
    return [x for name, value in flags.items() if name in names
            for x in (f"--{name.replace('_', '-')}", value)]


# --------------------------------------------------------------------------------------------------
# What works
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
def test_help(script):
    """--help in a process of its own: exit code 0, every flag with its help, nothing on stderr."""
    done = subprocess.run([sys.executable, str(ROOT / f"{script.__name__}.py"), "--help"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for f in dataclasses.fields(script.Args):
        flag = f"--{f.name.replace('_', '-')}"
        assert re.search(rf"{flag}\b", done.stdout), flag
        if isinstance(f.default, bool):
            assert f"--no-{flag[2:]}" in done.stdout
    assert "discount factor" in done.stdout


@each_kind(SCRIPTS)
def test_a_run(script, kind, run, tmp_path):
    """A short run from the command line, into the default directory; a word on the arithmetic."""
    env_id = register(Count, kind=kind)
    code, out, err = run(script, *small(script, env_id), "--no-cuda")
    assert (code, err) == (0, "")
    batch = 16 if hasattr(script.Args, "num_steps") else script.Args.episodes_per_update
    assert f"steps 0 to 64, at least {batch} an iteration" in out
    assert "device cpu" in out and "GPU" not in out
    directory, = (tmp_path / "empty" / "runs").iterdir()
    assert str(directory.name) in out


@each(SCRIPTS)
def test_cuda_without_a_gpu(script, run, monkeypatch):
    """--cuda where there is no GPU: a line that says so, and the run is done on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    env_id = register(Count, kind=kinds(script)[0])
    code, out, err = run(script, *small(script, env_id), "--cuda")
    assert code == 0 and "device cpu" in out
    assert sum("--cuda" in line and "CPU" in line for line in out.splitlines()) == 1


@each(SCRIPTS)
def test_no_cuda_does_not_ask_the_driver(script, run, monkeypatch):
    """--no-cuda decides before the driver is touched, when choosing the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the driver was asked"))
    assert script.start(script.Args(cuda=False)) == torch.device("cpu")


@each(SCRIPTS)
def test_torch_deterministic(script):
    """--torch-deterministic lets PyTorch refuse what is not deterministic; off: it does not."""
    for flag in (True, False):
        script.start(script.Args(cuda=False, torch_deterministic=flag))
        assert torch.are_deterministic_algorithms_enabled() == flag


@each(SCRIPTS)
def test_booleans(script, parsed):
    """--flag and --no-flag for every boolean; each value arrives."""
    booleans = [f for f in dataclasses.fields(script.Args) if isinstance(f.default, bool)]
    assert booleans
    for prefix, expected in (("--", True), ("--no-", False)):
        flags = [prefix + f.name.replace("_", "-") for f in booleans]
        args = parsed(script, *flags)
        assert all(getattr(args, f.name) is expected for f in booleans)


@each(SCRIPTS)
@pytest.mark.parametrize("flags", [["--no-such-flag"], ["--seed", "one"], ["--cuda", "True"]],
                         ids=" ".join)
def test_unknown_flags(script, flags, run):
    """A flag or a value that cannot be parsed: exit code 2 and its name, no traceback."""
    code, out, err = run(script, *flags)
    assert code == 2 and flags[-1 if flags[0] == "--cuda" else 0].strip("-") in err
    assert "Traceback" not in err


@each_kind(SCRIPTS)
def test_resume_and_evaluate_use_the_run_s_flags(script, kind, tmp_path, parsed):
    """With --resume or --evaluate the run's own flags hold; a flag given now overrides its own.
    That the run was itself resumed before makes no difference."""
    env_id = register(Count, kind=kind)
    args, _, directory = trained(script, tmp_path, env_id=env_id, gamma=0.5, seed=9)
    script.train(dataclasses.replace(args, resume=str(directory)))
    for flag in ("--resume", "--evaluate"):
        args = parsed(script, flag, directory, "--seed", 3)
        assert (args.env_id, args.gamma, args.seed) == (env_id, 0.5, 3)
        given = {"resume": None, "evaluate": None, flag[2:]: str(directory)}
        assert {"resume": args.resume, "evaluate": args.evaluate} == given


@each(SCRIPTS)
def test_resume_keeps_what_the_run_did_at_its_end(script, tmp_path, parsed):
    """--resume keeps --eval-episodes 0 and --capture-video; --evaluate plays, and films nothing."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kinds(script)[0]))
    checkpoint = torch.load(directory / "checkpoint.pt", weights_only=True)
    checkpoint["args"] |= {"eval_episodes": 0, "capture_video": True}
    torch.save(checkpoint, directory / "checkpoint.pt")
    for flag, expected in (("--resume", (0, True)), ("--evaluate", (10, False))):
        args = parsed(script, flag, directory)
        assert (args.eval_episodes, args.capture_video) == expected


@each_kind(SCRIPTS)
def test_evaluate_from_the_command_line(script, kind, tmp_path, run):
    """--evaluate plays episodes, prints their mean and std, and trains nothing."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kind))
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    code, out, err = run(script, "--evaluate", directory, "--eval-episodes", "2")
    assert (code, err) == (0, "") and "2 episodes" in out and "6.0 ± 0.0" in out
    after = {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "evaluation.json"}
    assert after == before


# --------------------------------------------------------------------------------------------------
# What is refused: environments
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
@pytest.mark.parametrize("env_id, near", [
    ("CartPole-v99", "`v1`"), ("Cartpol-v1", "`CartPole`"), ("HalfCheeta-v4", "`HalfCheetah`"),
    ("nowhere/Thing-v0", "nowhere"), ("no_such_module:X-v0", "no_such_module")])
def test_unknown_environment(script, env_id, near, refused):
    """The flag, the name, and the nearest name or version there is, or what there is not."""
    refused(script, [f"--env-id {env_id}: ", near], "--env-id", env_id)


@each(SCRIPTS)
def test_missing_simulator(script, refused, monkeypatch):
    """An environment whose simulator is not installed: the pip line that mends it."""
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [n for n in sys.modules if n.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    refused(script, ["--env-id Ant-v5", "pip install"], "--env-id", "Ant-v5")


@each([s for s in SCRIPTS if s.__name__ in OTHER])
def test_wrong_action_space(script, refused):
    """The other PPO script is named."""
    other, space = OTHER[script.__name__]
    env_id = register(Spaces, action=space)
    refused(script, ["--env-id", env_id, f"{other}.py"], "--env-id", env_id)


@pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([2, 2]), gym.spaces.MultiBinary(3),
                                   gym.spaces.Dict(a=BOX), gym.spaces.Box(-1, 1, (2, 2)),
                                   gym.spaces.Box(0, 5, (2,), np.int64)],
                         ids=["MultiDiscrete", "MultiBinary", "Dict", "matrix", "integers"])
@each(SCRIPTS)
def test_unsupported_actions(script, space, refused):
    """MultiDiscrete, MultiBinary, Dict, matrix and integer Box actions are refused by name."""
    env_id = register(Spaces, action=space)
    refused(script, [f"--env-id {env_id}", str(space)], "--env-id", env_id)


@pytest.mark.parametrize("space", [
    gym.spaces.Dict(a=BOX), gym.spaces.Tuple([BOX, BOX]), gym.spaces.MultiDiscrete([2, 2]),
    gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)], ids=["Dict", "Tuple", "MultiDiscrete", "image"])
@each_kind(SCRIPTS)
def test_unsupported_observations(script, kind, space, refused):
    """Dict, Tuple, image and MultiDiscrete observations are refused by name."""
    env_id = register(Spaces, obs=space, action=ACTION[kind])
    refused(script, [f"--env-id {env_id}", str(space)], "--env-id", env_id)


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each(SCRIPTS)
def test_empty_run_directory(script, flag, refused):
    """An empty name, as from a shell variable that is not set, starts no new run."""
    refused(script, [f"{flag} ", "checkpoint.pt"], flag, "")


# --------------------------------------------------------------------------------------------------
# What is refused: numbers
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flag, value", [
    ("num-envs", 0), ("num-envs", -1), ("num-steps", 0), ("total-timesteps", 0),
    ("total-timesteps", -5), ("num-minibatches", 0), ("update-epochs", 0), ("learning-rate", 0.0),
    ("learning-rate", -0.1), ("learning-rate", "nan"), ("gamma", 1.5), ("gamma", -0.1),
    ("gae-lambda", 1.01), ("clip-coef", 0.0), ("clip-coef", -0.2), ("ent-coef", -0.1),
    ("vf-coef", -1.0), ("max-grad-norm", -1.0), ("target-kl", 0.0), ("seed", -1),
    ("seed", 2**64), ("learning-rate", "inf"), ("ent-coef", "inf"), ("log-std-init", "nan"),
    ("eval-episodes", -1), ("clip-obs", 0.0), ("episodes-per-update", 0), ("critic-epochs", 0),
    ("cg-iters", 0), ("cg-damping", -0.1), ("backtrack-coef", 1.5), ("backtrack-iters", 0)])
@each(SCRIPTS)
def test_bad_numbers(script, flag, value, refused, monkeypatch):
    """Out of its range: the flag and the value."""
    if flag.replace("-", "_") not in {f.name for f in dataclasses.fields(script.Args)}:
        pytest.skip("not a flag of this script")
    monkeypatch.setattr(script, "make_envs", lambda *_: pytest.fail("it was not refused"))
    refused(script, [f"--{flag} {value}"], f"--{flag}", value)


@each(SCRIPTS)
def test_numbers_at_the_edge_of_their_range(script):
    """Both ends of a range work."""
    names = {f.name for f in dataclasses.fields(script.Args)}
    for edge in (
            {"gamma": 0.0, "gae_lambda": 0.0, "backtrack_coef": 0.0, "seed": 0, "ent_coef": 0.0,
             "vf_coef": 0.0, "max_grad_norm": 0.0, "cg_damping": 0.0, "eval_episodes": 0,
             "target_kl": 1e-9, "log_std_init": -5.0},
            {"gamma": 1.0, "gae_lambda": 1.0, "backtrack_coef": 1.0, "seed": 2**64 - 1,
             "clip_obs": math.inf, "clip_reward": math.inf, "log_std_init": 1.0}):
        script.start(script.Args(cuda=False, **{k: v for k, v in edge.items() if k in names}))


@each([s for s in SCRIPTS if hasattr(s.Args, "num_minibatches")])
def test_minibatches_must_divide_the_batch(script, refused):
    """Neither an incomplete last minibatch nor a minibatch of one."""
    sizes = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches"]
    for parts in (3, 16, 32):  # 16 transitions
        refused(script, [f"--num-minibatches {parts}", "16", "--num-steps"], *sizes, parts)


@each([s for s in SCRIPTS if hasattr(s.Args, "num_steps")])
def test_a_batch_of_one(script, refused):
    """Its advantages cannot be standardised: refused, not NaN."""
    refused(script, ["--num-steps", "--num-envs"], "--num-envs", 1, "--num-steps", 1)


@each([s for s in SCRIPTS if hasattr(s.Args, "episodes_per_update")])
@pytest.mark.parametrize("episodes, played", [(4, 8), (8, 8), (12, 16)])
def test_episodes_fill_the_environments(script, episodes, played, run, tmp_path):
    """Rounds of N episodes make up E, rounded up: never fewer than asked for."""
    env_id = register(Count, kind=kinds(script)[0])
    code, _, err = run(script, "--env-id", env_id, "--num-envs", 8, "--episodes-per-update",
                       episodes, "--total-timesteps", 100, "--eval-episodes", 0, "--no-cuda")
    assert (code, err) == (0, "")
    directory, = (tmp_path / "empty" / "runs").iterdir()
    assert rows(directory)[0]["episodes"] == str(played)


@each([s for s in SCRIPTS if hasattr(s.Args, "episodes_per_update")])
def test_a_group_of_one(script, refused):
    """It has no std: refused, not NaN."""
    refused(script, ["--baseline group", "--num-envs"], "--num-envs", 1, "--baseline", "group",
            "--total-timesteps", 100)


@each([s for s in SCRIPTS if hasattr(s.Args, "num_steps")])
def test_budget_below_one_rollout(script, refused):
    """Zero iterations would be a silent success."""
    refused(script, ["--total-timesteps 100", "128"], "--total-timesteps", 100,
            "--num-envs", 8, "--num-steps", 16)


@each(SCRIPTS)
def test_film_without_pictures(script, refused):
    """--capture-video where the environment cannot be rendered is refused before training."""
    env_id = register(Spaces, action=ACTION[kinds(script)[0]])
    refused(script, ["--capture-video", env_id], "--env-id", env_id, "--capture-video")


@each(SCRIPTS)
def test_film_of_nothing(script, refused):
    """An environment that is not there is --env-id's fault; without evaluation there is no film."""
    for env_id in ("Nowhere-v0", "no_such_module:Nowhere-v0"):
        refused(script, [f"--env-id {env_id}"], "--env-id", env_id, "--capture-video")
    refused(script, ["--capture-video", "--eval-episodes 0"], "--env-id",
            register(Count, kind=kinds(script)[0]), "--capture-video", "--eval-episodes", 0)


@each(SCRIPTS)
def test_track_without_wandb(script, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(script, ["--track", "pip install wandb"], "--env-id",
            register(Count, kind=kinds(script)[0]), "--track")


@each(SCRIPTS)
def test_a_file_in_the_place_of_the_run_directory(script, refused, tmp_path):
    """--run-dir where no directory can be made: the flag and the reason, no traceback."""
    (tmp_path / "file").touch()
    refused(script, ["--run-dir", str(tmp_path / "file"), "Not a directory"], "--env-id",
            register(Count, kind=kinds(script)[0]), "--run-dir", tmp_path / "file" / "runs")


# --------------------------------------------------------------------------------------------------
# What is refused: run directories
# --------------------------------------------------------------------------------------------------
MADE = []


def make() -> str:
    MADE.append(1)
    return "made"


class Foreign:
    """An object that a checkpoint must not bring to life: unpickling it calls make()."""

    def __reduce__(self):
        return make, ()


def damage(path, how):
    whole = path.read_bytes()
    if how == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(2000))
    elif how == "cut short":
        path.write_bytes(whole[:len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign object":
        torch.save({"algorithm": Foreign()}, path)
    elif how == "not a dict":
        torch.save([1, 2], path)
    elif how == "incomplete":
        checkpoint = torch.load(path, weights_only=True)
        torch.save({"algorithm": checkpoint["algorithm"]}, path)
    elif how == "another network":
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["agent"]["critic.0.weight"] = torch.zeros(3, 3)
        torch.save(checkpoint, path)


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each(SCRIPTS)
def test_no_run_directory(script, flag, refused, tmp_path):
    """A directory that is missing, or has no checkpoint."""
    refused(script, [f"{flag} nowhere"], flag, "nowhere")
    (tmp_path / "bare").mkdir()
    refused(script, [f"{flag} {tmp_path / 'bare'}", "checkpoint.pt"], flag, tmp_path / "bare")
    assert not list((tmp_path / "bare").iterdir())


@pytest.mark.parametrize("how", ["random bytes", "cut short", "empty", "foreign object",
                                 "not a dict", "incomplete", "another network"])
@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each(SCRIPTS)
def test_damaged_checkpoint(script, flag, how, refused, tmp_path, capsys):
    """One line, only tensors and plain values unpickled, no file changed."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kinds(script)[0]))
    damage(directory / "checkpoint.pt", how)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    MADE.clear()
    capsys.readouterr()
    refused(script, [f"{flag} {directory}"], flag, directory)
    assert not MADE
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


@each(SCRIPTS)
def test_checkpoint_of_another_version(script, refused, tmp_path, capsys):
    """A flag that the script no longer has is named: it is not called a damaged file alone."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kinds(script)[0]))
    checkpoint = torch.load(directory / "checkpoint.pt", weights_only=True)
    checkpoint["args"]["old_flag"] = 1
    torch.save(checkpoint, directory / "checkpoint.pt")
    capsys.readouterr()
    refused(script, [f"--resume {directory}", "old_flag"], "--resume", directory)


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each(SCRIPTS)
def test_checkpoint_of_another_script(script, flag, refused, tmp_path, capsys):
    """The line names the script that wrote it."""
    other = importlib.import_module(next(name for name in LADDER if name != script.__name__))
    _, _, directory = trained(other, tmp_path, env_id=register(Count, kind=kinds(other)[0]))
    capsys.readouterr()
    refused(script, [f"{flag} {directory}", f"{other.__name__}.py"], flag, directory)


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@each_kind(SCRIPTS)
def test_checkpoint_of_another_environment(script, kind, flag, refused, tmp_path, capsys):
    """--env-id beside --resume or --evaluate must be the run's own."""
    env_id, other = register(Count, kind=kind), register(Count, kind=kind)
    _, _, directory = trained(script, tmp_path, env_id=env_id)
    capsys.readouterr()
    refused(script, [flag, str(directory), env_id, other], flag, directory, "--env-id", other)


@each_kind(SCRIPTS)
def test_resume_and_evaluate_exclude_each_other(script, kind, refused, tmp_path, capsys):
    """Both at once have no meaning."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kind))
    capsys.readouterr()
    refused(script, ["--resume", "--evaluate"], "--resume", directory, "--evaluate", directory)


@each_kind(SCRIPTS)
def test_evaluate_no_episodes(script, kind, refused, tmp_path, capsys):
    """--evaluate with --eval-episodes 0 has nothing to report: refused, not NaN."""
    _, _, directory = trained(script, tmp_path, env_id=register(Count, kind=kind))
    capsys.readouterr()
    refused(script, ["--eval-episodes 0"], "--evaluate", directory, "--eval-episodes", 0)
