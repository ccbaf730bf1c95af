"""benchmarks/: the runner (interrupted, resumed, with a failure), report, speed."""
import csv
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, changeable

sys.path.insert(0, str(ROOT / "benchmarks"))
import peers  # noqa: E402
import run  # noqa: E402
import speed  # noqa: E402
import variants  # noqa: E402

import ppo_continuous  # noqa: E402


def command(tmp_path, *flags):
    return [sys.executable, str(ROOT / "benchmarks/run.py"), "smoke",
            "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), *flags]


def table(tmp_path):
    """The runs in the suite's table, each with its rows; the rows have the seconds of the run."""
    return run.read(tmp_path / "results/smoke.csv.gz")


# --------------------------------------------------------------------------------------------------
# run.py
# --------------------------------------------------------------------------------------------------
def test_a_suite_interrupted_and_resumed(tmp_path):
    """Ctrl-C after the first of four runs; the same command does the rest, and only the rest."""
    process = subprocess.Popen(command(tmp_path, "--seeds", "1", "2", "--jobs", "1"),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True,  # and Ctrl-C works, also under nohup and &
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 120
    while not table(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in out, out
    assert "Traceback" not in out
    before = table(tmp_path)
    assert 1 <= len(before) < 4

    done = subprocess.run(command(tmp_path, "--seeds", "1", "2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"4 runs, {len(before)} of them done" in done.stdout
    after = table(tmp_path)
    assert len(after) == 4 and all(after[one] == before[one] for one in before), (
        "a finished run was redone")

    again = subprocess.run(command(tmp_path, "--seeds", "1", "2"), capture_output=True, text=True)
    assert "4 runs, 4 of them done" in again.stdout and table(tmp_path) == after


def test_a_run_that_no_command_put_into_the_table(tmp_path):
    """Its command was killed, or the cluster finished it later: the next command adds it, once."""
    job, runs = run.experiment("a2c", "CartPole-v1", total_timesteps=4_096), tmp_path / "runs"
    found = run.execute(job, 1, runs, ["--no-cuda"])
    (found.parent / "torn").mkdir()
    (found.parent / "torn/evaluation.json").touch()
    shutil.copy(found / "args.json", found.parent / "torn")  # but evaluation.json is not whole
    assert run.finished(job, 1, runs) == found and not table(tmp_path)
    flags = ("--seeds", "1", "--only", "a2c")
    done = subprocess.run(command(tmp_path, *flags), capture_output=True, text=True)
    assert "smoke: 1 runs, 1 of them done" in done.stdout and list(table(tmp_path)) == [(job, 1)]
    args, ((*_, last),) = json.loads((found / "args.json").read_text()), table(tmp_path).values()
    code = hashlib.sha256((ROOT / "a2c.py").read_bytes()).hexdigest()[:12]
    assert json.loads(last["versions"]) == {"device": "cpu", "compile": False, "code": code} | {
        name: args[name] for name in ("python", "torch", "numpy", "gymnasium")}
    assert run.finished(job, 1, runs) is None
    (tmp_path / "results/smoke.csv.gz").unlink()  # another --results: it is run anew
    again = subprocess.run(command(tmp_path, "--dry-run", *flags), capture_output=True, text=True)
    assert "smoke: 1 runs, 0 of them done" in again.stdout


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    """--seed -1 is refused by the script; the other seed is run; the exit code says it."""
    done = subprocess.run(command(tmp_path, "--seeds", "-1", "1", "--only", "a2c"),
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: a2c__CartPole-v1__total-timesteps_4096__seed-1: exit code 2" in done.stdout
    assert [(job.name, seed) for job, seed in table(tmp_path)] == [
        ("a2c__CartPole-v1__total-timesteps_4096", 1)]


def test_submitted_to_a_cluster(tmp_path):
    """The local executor of submitit goes through the same submission as Slurm's."""
    pytest.importorskip("submitit")
    done = subprocess.run(command(tmp_path, "--seeds", "1", "--cluster", "local"),
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path)) == 2


def test_dry_run_writes_nothing(tmp_path):
    done = subprocess.run(command(tmp_path, "--dry-run", "--only", "reinforce", "--seeds", "7"),
                          capture_output=True, text=True)
    assert done.stdout.splitlines() == ["reinforce__CartPole-v1__total-timesteps_4000__seed7",
                                        "smoke: 1 runs, 0 of them done"]
    assert not any(tmp_path.iterdir())


def thinned(tmp_path, number_of_rows, **flags):
    """The table's rows of a run that has had so many."""
    rows = [[i, 10 * i, 0.123456789 * i, ""] for i in range(1, number_of_rows + 1)]
    with (tmp_path / "progress.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["iteration", "global_step", "return_100", "x"], *rows])
    args = vars(ppo_continuous.Args(seed=3, **flags)) | {"algorithm": "ppo_continuous"}
    (tmp_path / "args.json").write_text(json.dumps(args))
    (tmp_path / "evaluation.json").write_text(json.dumps({"returns": [1.0, 2.0]}))
    return run.thin(tmp_path, run.experiment("ppo_continuous", "Hopper-v4", **flags))


@pytest.mark.parametrize("number_of_rows", [1, 99, 100, 101, 1000])
def test_a_thinned_run_keeps_its_last_row(tmp_path, number_of_rows):
    """At most 100 rows, evenly spaced; what a run has once is in its last."""
    rows = thinned(tmp_path, number_of_rows, clip_coef=0.3)
    assert len(rows) == min(number_of_rows, 100) or 50 < len(rows) < 100
    steps = [int(row["global_step"]) for row in rows]
    assert steps[-1] == 10 * number_of_rows and len(set(np.diff(steps))) <= 1
    assert all(row["flags"] == "--clip-coef 0.3" and row["seed"] == "3" for row in rows)
    assert rows[-1]["return_100"] == f"{0.123456789 * number_of_rows:.5g}" and rows[-1]["x"] == ""
    assert not any(name in row for row in rows[:-1] for name in run.LAST)
    assert json.loads(rows[-1]["evaluation"]) == [1.0, 2.0]
    settings = json.loads(rows[-1]["settings"])
    assert settings["clip_coef"] == 0.3 and "seed" not in settings


def test_a_table_is_read_as_it_was_written(tmp_path):
    """In whatever order the runs come, it is the same file; pandas reads it, too."""
    path, other = tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"
    jobs = [run.experiment("ppo_continuous", "Hopper-v4", gamma=gamma) for gamma in (0.9, 0.95)]
    runs = {(job, seed): thinned(tmp_path, 7) for job in jobs for seed in (10, 2)}
    for (job, seed), rows in runs.items():
        for row in rows:
            row |= {"flags": job.flags, "seed": str(seed), f"only_{job.flags}": "1"}
    run.write(path, runs)
    for one in reversed(runs):  # each read anew, as by add
        run.write(other, run.read(other) | {one: runs[one]})
    assert path.read_bytes() == other.read_bytes()
    found = run.read(path)
    assert list(found) == sorted(runs) and run.read(tmp_path / "none.csv.gz") == {}
    assert all({k: v for k, v in row.items() if v} == {k: v for k, v in given.items() if v}
               for one in runs for row, given in zip(found[one], runs[one], strict=True))
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(path)
    assert len(frame) == 28 and len(frame.dropna(subset="evaluation")) == 4


def test_names_of_experiments():
    """Defaults, and what a script does not have, are left out; so the same run has one name."""
    default = run.experiment("ppo_continuous", "Hopper-v4")
    assert run.experiment("ppo_continuous", "Hopper-v4", total_timesteps=1_000_000, cg_iters=3,
                          gae_lambda=ppo_continuous.Args.gae_lambda) == default
    assert default.name == "ppo_continuous__Hopper-v4__default"
    job = run.experiment("trpo", "Hopper-v4", norm_obs=False, cg_iters=3, gamma=0.9)
    assert job.flags == "--gamma 0.9 --cg-iters 3 --no-norm-obs"
    assert run.experiment("ppo_continuous", "X-v1", variant="beta").name == (
        "ppo_continuous+beta__X-v1__default")


def test_a_result_of_other_defaults_is_not_done(tmp_path):
    """A run with other settings than the experiment's is run again, and takes the place of the old
    one, in whichever table that was."""
    job = run.experiment("a2c", "CartPole-v1", total_timesteps=4_096)
    settings = run.settings_of(job)
    assert settings["num_envs"] == 8 and "seed" not in settings
    row = {name: str(value) for name, value in job._asdict().items()} | {
        "seed": "1", "return_100": "7", "evaluation": "[1.0]", "versions": "{}"}
    for change, done in (({}, 1), ({"num_envs": 4}, 0)):
        rows = [row | {"settings": json.dumps(settings | change)}]
        assert run.is_done(job, rows) == done
        (tmp_path / "results").mkdir(exist_ok=True)
        run.write(tmp_path / "results/another.csv.gz", {(job, 1): rows})
        flags = ("--seeds", "1", "--only", "a2c")
        out = subprocess.run(command(tmp_path, *flags), capture_output=True, text=True).stdout
        assert f"smoke: 1 runs, {done} of them done" in out
    assert not (tmp_path / "results/smoke.csv.gz").exists()
    (rows,) = run.read(tmp_path / "results/another.csv.gz").values()
    assert json.loads(rows[-1]["settings"]) == settings and float(rows[-1]["return_100"]) > 7


def test_two_commands_add_at_once(tmp_path):
    """Neither loses the other's runs: the table is read and written by one at a time."""
    code = ("import json, sys; sys.path.insert(0, sys.argv[1]); import run\n"
            "from pathlib import Path\n"
            "run.thin = lambda folder, job: [dict(zip(run.KEY, map(str, (*job, seed)))) | {"
            "'settings': '{}'}]\n"
            "for seed in range(int(sys.argv[2]), 60, 2):\n"
            "    run.add(Path('t/x.csv.gz'), run.Experiment('a2c', 'X'), seed, Path('.'))")
    both = [subprocess.Popen([sys.executable, "-c", code, str(ROOT / "benchmarks"), start],
                             cwd=tmp_path) for start in "01"]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(seed for _, seed in run.read(tmp_path / "t/x.csv.gz")) == list(range(60))


def test_settings_of_the_suites_exist():
    """No name is misspelt (a script leaves out what it does not have), no ablation does nothing."""
    known = {name for job in run.compare() for name in run.settings_of(job)}
    changes = [settings for _, *both in run.CLASSIC.values() for settings in both]
    changes += [*run.ABLATIONS.values(), run.BARE, run.COARSE]
    assert {name for settings in changes for name in settings} <= known | {"script", "env_id"}
    jobs = [run.experiment("ppo_continuous", "Hopper-v4", **c) for c in run.ABLATIONS.values()]
    assert len(set(jobs)) == len(run.ABLATIONS)


@pytest.mark.parametrize("suite", run.SUITES)
def test_flags_of_every_suite_are_accepted(suite):
    """Each experiment's flags go through its script's command line, to the settings meant."""
    import tyro

    for job in run.experiments(suite):
        if job.script in run.NOT_OURS:
            steps = run.settings_of(job)["total_timesteps"]
            assert job.flags == ("--total-timesteps 100000" if job.script == "random" else "")
            assert steps == (100_000 if job.script == "random" else 1_000_000)
            continue
        args = tyro.cli(importlib.import_module(job.script).Args, args=job.flags.split())
        settings = {name: value for name, value in vars(args).items() if name != "env_id"}
        assert run.experiment(job.script, job.env_id, job.variant, **settings) == job
        assert not job.variant or job.variant in variants.VARIANTS


# --------------------------------------------------------------------------------------------------
# peers.py
# --------------------------------------------------------------------------------------------------
def trained_peer(name, tmp_path, env_id, steps, **environment):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/peers.py"), name, "--env-id",
                           env_id, "--total-timesteps", str(steps), "--run-dir", str(tmp_path)],
                          capture_output=True, text=True, env=os.environ | environment)
    return done, next(tmp_path.glob(f"*__{name}__*"), None)


def test_log_of_a_peer(tmp_path):
    """return_100 is the mean of the last 100 episodes; no row before the first has ended."""
    log = peers.Log(tmp_path)
    log.row(5)
    for i in range(150):
        log.episode(float(i), 10 + i % 2)
    log.row(1500)
    (row,) = csv.DictReader((tmp_path / "progress.csv").open())
    assert (row["global_step"], row["episodes"]) == ("1500", "150")
    assert float(row["return_100"]) == np.mean(range(50, 150))
    assert float(row["episodic_length"]) == 10.5


def test_cleanrl_is_run_by_its_own_python(tmp_path):
    """$CLEANRL's Python is a link, as in every virtual environment, and is called by its name; a
    script that prints no return is a failure."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.symlink_to(sys.executable)
    script = tmp_path / "ppo.py"
    script.write_text("import sys\nprint(sys.argv[1:], file=open('seen', 'w'))\n"
                      "print('global_step=30, episodic_return=[12.5]')\n"
                      "print('global_step=70, episodic_return=-2.5')\n"
                      f"assert sys.orig_argv[:2] == [{str(python)!r}, '-u']")
    done, folder = trained_peer("cleanrl_ppo", tmp_path, "Hopper-v4", 100,
                                CLEANRL=f"{python} -u {script} --gamma 0.9")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "progress.csv").open()))
    assert [(row["global_step"], row["return_100"]) for row in rows] == [("30", "12.5"),
                                                                         ("70", "5.0")]
    assert "'--env-id', 'Hopper-v4', " in (folder / "seen").read_text()
    assert "'--seed', '1']" in (folder / "seen").read_text()
    args = json.loads((folder / "args.json").read_text())
    assert "torch" not in args and args["settings"]["total_timesteps"] == 100
    assert args["settings"]["flags"] == (
        "--gamma 0.9 --env-id Hopper-v4 --total-timesteps 100 --no-cuda")
    assert args["settings"]["python"] == platform.python_version()
    shutil.rmtree(folder)
    script.write_text(script.read_text() + "\n")
    _, folder = trained_peer("cleanrl_ppo", tmp_path, "Hopper-v4", 100,
                             CLEANRL=f"{python} -u {script} --gamma 0.9")
    other = json.loads((folder / "args.json").read_text())["settings"]
    assert other["flags"] == args["settings"]["flags"] and other != args["settings"]
    script.write_text("print('nothing')")
    done, _ = trained_peer("cleanrl_ppo", tmp_path, "Walker2d-v4", 100,
                           CLEANRL=f"{python} {script}")
    assert done.returncode == 1 and "exit code 0, 0 episodes" in done.stderr


def test_packages_of_another_python():
    python = {"python": platform.python_version()}
    assert peers.packages_of([sys.executable, "-u"]) == python | {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "gymnasium", "mujoco")}
    assert peers.packages_of([sys.executable, "-S"]) == python  # without what is installed


@pytest.mark.parametrize("name", ["python3.8", "python3.9"])
def test_packages_of_an_old_python(name):
    """CleanRL's may be older than ours."""
    if not shutil.which(name) or subprocess.run([name, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no {name}")
    assert peers.packages_of([name])["python"].startswith(name.removeprefix("python"))


@pytest.mark.parametrize("named", ["", "python", __file__, f"python {__file__} {__file__}"])
def test_cleanrl_without_a_script(tmp_path, monkeypatch, capsys, named):
    monkeypatch.setenv("CLEANRL", named)
    with pytest.raises(SystemExit) as end:
        peers.cleanrl(peers.Args("cleanrl_ppo"), tmp_path, peers.Log(tmp_path))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"CLEANRL={named!r}: it has to name a Python and one script\n")


def test_random_actions(tmp_path):
    """They score as every beginner's course says, and the last row is at the last step."""
    done, folder = trained_peer("random", tmp_path, "CartPole-v1", 10_500)
    assert done.returncode == 0, done.stderr
    *_, last = run.thin(folder, run.Experiment("random", "CartPole-v1"))
    assert last["global_step"] == "10500" and 18 < float(last["return_100"]) < 26
    assert len(json.loads(last["evaluation"])) == 10


@pytest.mark.parametrize("name", [name for name in run.PEERS if name != "cleanrl_ppo"])
def test_a_peer(tmp_path, name):
    """What it writes goes into a table; a run of 4,096 steps is none of the suite's."""
    pytest.importorskip("tianshou" if name.startswith("tianshou") else "rl_zoo3")
    done, folder = trained_peer(name, tmp_path, "Hopper-v4", 4_096)
    assert done.returncode == 0, done.stderr
    rows = run.thin(folder, run.Experiment(name, "Hopper-v4"))
    assert 4_000 <= int(rows[-1]["global_step"]) <= 4_200 and float(rows[-1]["return_100"]) > 5
    assert len(json.loads(rows[-1]["evaluation"])) == 10
    assert not run.is_done(run.Experiment(name, "Hopper-v4"), rows)


def test_evaluation_of_sb3(tmp_path, monkeypatch):
    """Deterministic actions, raw rewards, and the statistics of the training, frozen."""
    pytest.importorskip("rl_zoo3")
    evaluation = importlib.import_module("stable_baselines3.common.evaluation")
    evaluate, seen = evaluation.evaluate_policy, []

    def spy(model, envs, episodes, **options):
        found = evaluate(model, envs, episodes, **options)
        seen.append((options["deterministic"], envs.norm_obs, envs.norm_reward, envs.training,
                     np.array_equal(envs.obs_rms.mean, model.env.obs_rms.mean),  # afterwards
                     model.env.obs_rms.count > 4_000))
        return found

    monkeypatch.setattr(evaluation, "evaluate_policy", spy)
    args = peers.Args("sb3_trpo", "Hopper-v4", 4_096)
    _, returns = peers.sb3(args, tmp_path, peers.Log(tmp_path))
    assert seen == [(True, True, False, False, True, True)] and len(returns) == 10


@pytest.mark.parametrize("name", peers.TIANSHOU)
def test_evaluation_of_tianshou(tmp_path, monkeypatch, name):
    """Deterministic actions and the statistics of the training, frozen; and what TIANSHOU says
    reaches the library."""
    pytest.importorskip("tianshou")
    data, seen, training = importlib.import_module("tianshou.data"), [], []
    collect = data.Collector.collect

    def spy(self, n_episode=None, **options):
        if n_episode is None:
            training.append(self.env)
            return collect(self, **options)
        before = self.env.obs_rms.count
        found = collect(self, n_episode=n_episode, **options)
        state = np.ones(11)
        actions = [self.policy.compute_action(state).tolist() for _ in range(2)]
        seen.append((actions[0] == actions[1], before > 4_000, self.env.obs_rms.count == before,
                     self.env.obs_rms is training[0].obs_rms))
        return found

    given = {}
    for module, part in (("tianshou.algorithm", "PPO"), ("tianshou.algorithm", "Reinforce"),
                         ("tianshou.algorithm.optim", "AdamOptimizerFactory"),
                         ("tianshou.trainer", "OnPolicyTrainerParams"),
                         ("tianshou.algorithm.modelfree.reinforce", "ProbabilisticActorPolicy")):
        init = getattr(importlib.import_module(module), part).__init__
        monkeypatch.setattr(f"{module}.{part}.__init__", functools.partialmethod(
            lambda self, init, *values, **named: given.update(named) or init(
                self, *values, **named), init))
    monkeypatch.setattr(data.Collector, "collect", spy)
    args = peers.Args(name, "Hopper-v4", 4_096)
    settings, returns = peers.tianshou(args, tmp_path, peers.Log(tmp_path))
    assert seen == [(True, True, True, True)] and len(returns) == 10
    of_training, hyperparameters = peers.TIANSHOU[name]
    assert hyperparameters.items() <= given.items() and hyperparameters["gamma"] == 0.99
    assert {name: given[key] for name, key in (
        ("lr", "lr"), ("repetitions", "update_step_num_repetitions"), ("batch_size", "batch_size"),
        ("bound_method", "action_bound_method"))}.items() <= of_training.items()
    assert len(training[0]) == of_training["num_envs"]
    assert (of_training | hyperparameters).items() <= settings.items()


# --------------------------------------------------------------------------------------------------
# report.py
# --------------------------------------------------------------------------------------------------
@pytest.fixture
def report():
    for package in ("rliable", "matplotlib"):
        pytest.importorskip(package)
    return importlib.import_module("report")


@pytest.fixture(scope="module")
def committed():
    """The runs of all committed tables; to read them takes seconds."""
    for package in ("rliable", "matplotlib"):
        pytest.importorskip(package)
    return importlib.import_module("report").load(*run.tables(ROOT / "benchmarks/results"))


def fake_run(report, job, seed, final, mark_at=None):
    steps = np.arange(1, 11) * 1000.0
    returns = np.full(10, final)
    if mark_at is not None:
        returns = np.where(steps >= mark_at, 1e6, -1e6)
        returns[-1] = final
    columns = {"episodes": steps, "global_step": steps, "return_100": returns,
               "seconds": steps / 100}
    return report.Run(job, seed, columns, [final + 1.0], {"learning_rate": 1e-3})


def test_table(report):
    """By hand: mean 30 and std 15.8 of 10 … 50, IQM of the middle three 30, median of the steps."""
    job = run.experiment("a2c", "Hopper-v4", gamma=0.9)
    group = [fake_run(report, job, i, 10.0 * i, mark_at) for i, mark_at in
             zip(range(1, 6), (2000, 3000, 4000, None, None))]
    line = report.table({job: group}).splitlines()[2]
    assert "| a2c | Hopper-v4 | `--gamma 0.9` | 5 | 30 ± 16 | 30 (" in line
    assert line.endswith("| 10 | 31 ± 16 | 4,000 (3) | 1.7 |")


def test_intervals_are_reproducible(report):
    """The same runs give the same interval, whatever was drawn before."""
    finals = np.array([1.0, 5.0, 9.0, 2.0, 7.0])
    first = report.iqm(finals)
    np.random.random(7)
    assert report.iqm(finals) == first and first[1] < first[0] < first[2]


def test_published_numbers_have_a_run_beside_them(report):
    """Every published number belongs to an experiment of the suite compare."""
    runs = {job: [fake_run(report, job, 1, 7.0)] for job in run.compare()}
    runs |= {run.Experiment("sb3_trpo", "Hopper-v4"): [
        fake_run(report, run.Experiment("sb3_trpo", "Hopper-v4"), seed, 2.0 * seed)
        for seed in (1, 2)]}
    lines = report.published(runs).split("\n\n")[0].splitlines()[2:]
    assert len(lines) == 12 and all("| 7 (8; 1) |" in line for line in lines)
    assert ("| Hopper-v4 | TRPO | 7 (8; 1) | sb3-contrib 3 ± 1 (4; 2) | 3,372 (s.e. 215) P; "
            "2,466 E (TRPO+); 2,348 ± 1,506 N; 2,046 ± 1,038 T; 2,043 E |"
            in lines)


def test_table_of_peers(report):
    """By hand, Welch: of 1, 2, 3 and 4, 5, 6 t = −3.67 with 4 degrees of freedom, p = 0.021."""
    theirs, ours = run.Experiment("sb3_trpo", "Hopper-v4"), run.experiment("trpo", "Hopper-v4")
    runs = {theirs: [fake_run(report, theirs, seed, float(seed)) for seed in (1, 2, 3)],
            ours: [fake_run(report, ours, seed, 3.0 + seed) for seed in (1, 2, 3)]}
    assert report.against_peers(runs).splitlines()[2:] == [
        "| Hopper-v4 | sb3-contrib's TRPO | 2 ± 1 (3; 3) | 1, 3 | 5 ± 1 (6; 3) | 0.021 | 0.021 |"]


def test_every_peer_has_an_algorithm_beside_it(report):
    """And peers.py knows it by the same name."""
    names = [name for libraries in report.LIBRARIES.values() for name in libraries]
    assert sorted(names) == sorted(run.PEERS)
    assert sorted(run.NOT_OURS) == sorted(peers.NAMES)
    assert set(report.LIBRARIES) == {report.NAMES[job.script] for job in run.compare()}


def test_runs_of_other_settings_are_not_in_the_report(report, tmp_path, capsys):
    """Nor is a run that two tables have."""
    job = run.experiment("a2c", "CartPole-v1", gamma=0.9)
    row = {name: str(value) for name, value in job._asdict().items()} | {
        "return_100": "7", "evaluation": "[1.0]", "versions": "{}"}
    settings = run.settings_of(job)
    runs = {(job, seed): [row | {"seed": str(seed), "settings": json.dumps(given)}]
            for seed, given in ((1, settings), (2, settings | {"gae_lambda": 0.5}))}
    paths = [tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"]
    for path in paths:
        run.write(path, runs)
    (group,) = report.load(paths[0]).values()
    assert [one.seed for one in group] == [1]
    assert capsys.readouterr().out.startswith("a.csv.gz: 1 runs have settings of another time")
    with pytest.raises(report.own_runs.UserError, match="seed 1, is in two tables"):
        report.load(*paths)


def test_runs_of_two_versions_are_said_to_be(report, tmp_path, capsys):
    job, runs = run.experiment("a2c", "CartPole-v1", gamma=0.9), {}
    for name, code in (("a", ("x", "y")), ("b", ("x", "x"))):
        for seed in (1, 2):
            runs[job, seed] = [job._asdict() | {
                "seed": str(seed), "return_100": "7", "evaluation": "[1.0]",
                "versions": json.dumps({"code": code[seed - 1]}),
                "settings": json.dumps(run.settings_of(job))}]
        run.write(tmp_path / f"{name}.csv.gz", runs)
        assert [len(group) for group in report.load(tmp_path / f"{name}.csv.gz").values()] == [2]
    assert capsys.readouterr().out == (
        f"{job.name}: its runs differ in, or do not all record: code\n")


def test_code_of_a_run():
    """Another script, a variant and another library are other code."""
    jobs = [run.Experiment(*job) for job in (("a2c", "X"), ("trpo", "X"), ("a2c", "X", "", "beta"),
                                             ("trpo", "X", "", "beta"), ("sb3_a2c", "X"))]
    assert len({run.code_of(job) for job in jobs}) == 5 and run.code_of(jobs[-1]) == ""
    assert run.code_of(jobs[0]) == run.code_of(jobs[0]._replace(env_id="Y"))


@pytest.mark.parametrize("second, differs", [
    ({}, None), ({"settings": {"rl_zoo3": "2.10.0"}}, "rl_zoo3"),
    ({"versions": '{"mujoco": "3.0.0"}'}, "mujoco"), ({"versions": "{}"}, "mujoco")])
def test_runs_of_a_peer_must_be_alike(report, tmp_path, second, differs):
    peer, runs = run.Experiment("sb3_ppo", "Hopper-v4"), {}
    for seed, changed in ((1, {}), (2, second)):
        settings = run.settings_of(peer) | {"rl_zoo3": "2.9.2"} | changed.get("settings", {})
        runs[peer, seed] = [peer._asdict() | {
            "seed": str(seed), "return_100": "7", "evaluation": "[1.0]",
            "versions": changed.get("versions", '{"mujoco": "4.0.0"}'),
            "settings": json.dumps(settings)}]
    run.write(tmp_path / "peers.csv.gz", runs)
    if differs is None:
        assert [len(group) for group in report.load(tmp_path / "peers.csv.gz").values()] == [2]
    else:
        with pytest.raises(report.own_runs.UserError, match=f"all record: {differs};"):
            report.load(tmp_path / "peers.csv.gz")


def test_a_peers_run_with_other_settings_is_not_done():
    for job in run.peers():
        settings = run.settings_of(job)
        assert run.is_done(job, [{"settings": json.dumps(settings | {"tianshou": "2.0"})}])
        for name in settings:
            assert not run.is_done(job, [{"settings": json.dumps(settings | {name: -1})}])
        assert job.script.startswith("tianshou") == ("lr" in settings)


def test_intervals_stay_within_the_runs(report):
    """Nine runs at 500 and one at 100: Student's interval would end at 551."""
    job = run.experiment("a2c", "CartPole-v1")
    group = [fake_run(report, job, seed, 100.0 if seed == 1 else 500.0) for seed in range(1, 11)]
    figure, axis = report.plt.subplots()
    report.curve(axis, group, "return_100", "A2C", "black")
    (band,) = axis.collections
    ends = band.get_paths()[0].vertices[:, 1]
    assert 340 < ends.min() < 420 and ends.max() == 500
    report.plt.close(figure)


def test_ablation_table(report):
    """One row per change; Engstrom's five agents are among them, each beside its own name."""
    runs = {job: [fake_run(report, job, 1, 7.0)] for job in run.ablation()}
    *lines, aai, acli = report.engstrom(runs).splitlines()[2:]
    assert len(lines) == len(run.ABLATIONS) + 3
    assert all("| 7 (1) | 7 (1) |" in line for line in lines)
    assert sum("|  |" not in line for line in lines) == len(report.ENGSTROM_AGENTS) == 5
    assert f"| {report.TRPO_M} | 7 (1) | 7 (1) | 7 (1) | TRPO 2,043, 2,791, 586 |" in lines
    assert "| ReLU | 7 (1) | 7 (1) | – |  |" in lines
    assert (aai, acli) == ("| AAI: the algorithm | 0 | 0 | 0 | 99, 242, 224 |",
                           "| ACLI: the optimisations | 0 | 0 | 0 | 421, 557, 444 |")


def test_algorithm_or_optimisations(report):
    """By hand, with the means of Engstrom et al.'s table: their AAI and ACLI, to the rounding."""
    titles = report.ablation_titles()
    theirs = {"PPO": (2513, 3292, 806), report.PPO_M: (2142, 2735, 674),
              "TRPO": (2466, 3050, 1030), report.TRPO_M: (2043, 2791, 586)}
    tasks = ("Hopper-v4", "Walker2d-v4", "Humanoid-v4")
    runs = {job: [fake_run(report, job, 1, float(theirs[title][tasks.index(job.env_id)]))]
            for job, title in titles.items() if title in theirs}
    aai, acli = report.engstrom(runs).splitlines()[-2:]
    assert aai == "| AAI: the algorithm | 99 | 242 | 224 | 99, 242, 224 |"
    assert acli == "| ACLI: the optimisations | 423 | 557 | 444 | 421, 557, 444 |"


def test_no_summary_of_half_the_agents(report):
    """Humanoid-v4 with PPO and TRPO only, as the suite untuned runs it."""
    agents = [run.experiment(script, "Humanoid-v4") for script in ("ppo_continuous", "trpo")]
    runs = {job: [fake_run(report, job, 1, 7.0)] for job in agents}
    aai, acli = report.engstrom(runs).splitlines()[-2:]
    assert aai.startswith("| AAI: the algorithm | – |") and "| – |" in acli


def test_table_of_tasks_nobody_tuned_for(report):
    """By hand: the runs end 4 and 20 below their best; what fewer than 100 episodes had (90) is no
    best."""
    job = next(job for job in run.untuned() if job.env_id == "Humanoid-v4")
    runs = {job: [fake_run(report, job, seed, final) for seed, final in ((1, 10.0), (2, 30.0))]}
    for one, best in zip(runs[job], (14.0, 50.0)):
        one.columns["return_100"][4] = best
        one.columns["return_100"][0], one.columns["episodes"][0] = 90.0, 99
    assert report.untuned(runs).splitlines()[2:] == [
        "| Humanoid-v4 | PPO | 20 ± 14 (21; 2) | 10 | 20 | 806 (785 to 827) E; 787 ± 194 T; "
        "716 ± 49 C |"]
    short = runs[job][0]
    short.columns["episodes"] = np.arange(10.0)
    assert short.best == short.final == 10


def test_the_ablations_figure_has_two_tasks(report, monkeypatch):
    """On Humanoid-v4 most of its rows would be empty."""
    drawn = []
    monkeypatch.setattr(report, "bars", lambda runs, titles, name: drawn.append((name, titles)))
    monkeypatch.setattr(report, "annealing", lambda runs: None)
    report.ablation({run.experiment("trpo", "Humanoid-v4"): []})
    assert not drawn
    report.ablation({run.experiment("trpo", "Hopper-v4"): []})
    ((name, titles),) = drawn
    assert name == "ablation" and {job.env_id for job in titles} == {"Hopper-v4", "Walker2d-v4"}
    assert set(titles.values()) == set(report.ablation_titles().values())


def test_ablation_marks(report):
    """By hand, Welch: of 1, 2, 3 and 4, 5, 6 t = −3.67 with 4 degrees of freedom, p = 0.021; of
    1, 2, 3 and 2, 4, 6 t = −1.55 with 2.9, p = 0.22. Only the first is marked."""
    job = functools.partial(run.experiment, "ppo_continuous", "Hopper-v4")
    numbers = {job(): (1, 2, 3), job(activation="relu"): (4, 5, 6), job(gamma=0.99): (2, 4, 6)}
    runs = {j: [fake_run(report, j, n, float(n)) for n in group] for j, group in numbers.items()}
    lines = report.engstrom(runs).splitlines()[2:-2]
    assert lines == ["| PPO | 2 ± 1 (3) | PPO 2,513, 3,292, 806 |", "| ReLU | 5 ± 1 (3) * |  |",
                     "| γ = 0.99 | 4 ± 2 (3) |  |"]


def test_table_of_a_lecture(report):
    """By hand: of 300, 400 and 800 the standard deviation is 265, 53 % of the mean 500; the steps
    are the median of 2,000, 3,000 and 9,000; no row without runs of random actions."""
    ppo, *_, nobody = (job for job in run.sogang() if job.env_id == "HalfCheetah-v4")
    runs = {ppo: [fake_run(report, ppo, 1, 300.0, 2000), fake_run(report, ppo, 2, 400.0, 3000),
                  fake_run(report, ppo, 3, 800.0, 9000)]}
    assert len(report.sogang(runs).splitlines()) == 2
    runs[nobody] = [fake_run(report, nobody, seed, -7.0) for seed in (1, 2)]
    *_, line = report.sogang(runs).splitlines()
    assert line == ("| HalfCheetah-v4 | 10,000 | 500 ± 265 (501; 3) | 53 % | 2000: 3,000 (3) | 1.7 "
                    "| -7 ± 0 | 2000+, −300 |")


def test_distributions_table(report):
    jobs = [job for job in run.actions() if job.env_id != "Walker2d-v4"]
    runs = {job: [fake_run(report, job, 1, 5.0), fake_run(report, job, 2, 7.0)] for job in jobs}
    lines = report.distributions(runs).splitlines()[2:]
    assert len(lines) == 4
    assert lines[3] == "| Beta | 6 ± 1 (7; 2) | 6 ± 1 (7; 2) | – |"
    gaussian = {job: runs[job] for job in jobs if not job.variant}
    assert len(report.distributions(gaussian).splitlines()) == 3
    assert len(report.engstrom({}).splitlines()) == 2


def test_a_part_draws_its_figure_and_all_tables_are_written(report, tmp_path, monkeypatch):
    """All but speed.md, since no speed was measured. Of a suite that was not run none is written,
    though other suites have runs that it shares, and none that has no row."""
    runs = {job: [fake_run(report, job, 1, 7.0)] for suite in run.SUITES
            for job in run.experiments(suite)}
    for (one,) in runs.values():
        one.columns |= {name: np.ones(10) for name in ("clipfrac", "approx_kl", "entropy",
                                                       "policy_loss", "explained_variance")}
    drawn, committed = [], {path.name for path in (ROOT / "benchmarks/tables").iterdir()}
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "load", lambda *paths: runs)
    for name in report.FIGURES:
        monkeypatch.setitem(report.FIGURES, name, lambda runs, name=name: drawn.append(name))
    (tmp_path / "health.csv.gz").touch()
    report.report(("health",), tmp_path)
    assert drawn == ["health"]
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "hyperparameters.md", "health.md"}
    with pytest.raises(report.own_runs.UserError, match="there is no ablation.csv.gz"):
        report.report(("ablation",), tmp_path)
    for suite in (*run.SUITES, "trials"):
        (tmp_path / f"{suite}.csv.gz").touch()
    report.report(("health",), tmp_path)
    assert drawn == ["health", "health"]
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == committed - {"speed.md", "against_peers.md"}  # a test needs two runs each
    for path in (tmp_path / "tables").iterdir():
        path.unlink()
    humanoid = {job: group for job, group in runs.items() if job.env_id == "Humanoid-v4"}
    runs.clear()
    runs |= humanoid
    monkeypatch.setitem(report.FIGURES, "ablation", report.ablation)  # it has nothing to draw
    with pytest.raises(report.own_runs.UserError, match="health.csv.gz: no run has today's set"):
        report.report(("health",), tmp_path)
    assert not list((tmp_path / "tables").iterdir())  # all is made before any of it is written
    report.report(("ablation",), tmp_path)
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "ablation.md", "engstrom.md", "hyperparameters.md", "trials.md", "untuned.md"}
    runs.clear()
    with pytest.raises(report.own_runs.UserError, match="no run has today's settings"):
        report.report((), tmp_path)


@pytest.mark.parametrize("parts, files, figures", [
    (("clip",), [], ["clip"]), (("speed",), ["speed"], ["speed"]),
    (("health",), ["health", "hyperparameters"], ["health"]),
    (("health", "speed"), ["health", "hyperparameters", "speed"], ["health", "speed"]),
    ((), ["health", "hyperparameters", "speed"], ["health", "speed", "clip"])])
def test_what_a_part_writes(report, tmp_path, monkeypatch, parts, files, figures):
    """Tables first; a suite's figure (but that of peers) gets the runs of that suite alone."""
    drawn = []
    runs = {job: [fake_run(report, job, 1, 7.0)] for job in (*run.health(), *run.discount())}
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "load", lambda *paths: dict(runs) if paths else {})
    monkeypatch.setattr(report, "hyperparameters", lambda: "| a |\n|---|\n| 1 |\n")

    def draw(name, shown=None):
        assert sorted(path.stem for path in (tmp_path / "tables").glob("*")) == files
        assert shown is None or set(shown) == set(run.health())
        drawn.append(name)

    monkeypatch.setitem(report.FIGURES, "health", functools.partial(draw, "health"))
    monkeypatch.setattr(report, "clip", functools.partial(draw, "clip"))
    monkeypatch.setattr(report, "speed", lambda measured: draw("speed"))
    shutil.copy(ROOT / "benchmarks/results/speed.csv", tmp_path)
    (tmp_path / "health.csv.gz").touch()
    report.report(parts, tmp_path)
    assert drawn == figures
    if "speed" in parts:
        (tmp_path / "speed.csv").write_text(",".join(report.races.COLUMNS))
        with pytest.raises(report.own_runs.UserError, match="speed.csv has no rows"):
            report.report(parts, tmp_path)


def test_committed_tables(report, committed, tmp_path, monkeypatch):
    """They are what report.py makes of the committed runs, to the byte."""
    load = report.load
    monkeypatch.setattr(report, "load", lambda *paths: load(*paths) if len(paths) == 1 else (
        committed))
    monkeypatch.setattr(report, "HERE", tmp_path)
    for name in report.FIGURES:
        monkeypatch.setitem(report.FIGURES, name, lambda runs: None)
    for name in ("clip", "speed"):
        monkeypatch.setattr(report, name, lambda *measured: None)
    report.report((), ROOT / "benchmarks/results")
    written = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert written == {path.name: path.read_bytes() for path in
                       (ROOT / "benchmarks/tables").iterdir()}


def test_figures(report, tmp_path, monkeypatch):
    """Every suite's figure is drawn from runs of it."""
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "RESAMPLES", 20)
    for name, figure in report.FIGURES.items():
        jobs = run.experiments(name) + run.compare() * (name == "peers")
        runs = {job: [fake_run(report, job, seed, 100.0 * seed) for seed in (1, 2, 3)]
                for job in jobs}
        for group in runs.values():
            for one in group:
                one.columns |= {"approx_kl": np.full(10, 0.01), "clipfrac": np.full(10, 0.1),
                                "episodic_length": np.full(10, 700.0),
                                "entropy": np.full(10, 1.0),
                                "explained_variance": np.full(10, 0.9)}
        figure(runs)
    report.clip()
    report.speed(report.races.read(ROOT / "benchmarks/results/speed.csv"))
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("compare", "ablation", "actions", "sensitivity", "discount",
             "health", "peers", "annealing", "clip", "speed")
    assert drawn == {f"{name}.{ending}" for name in names for ending in ("png", "pdf")}


@pytest.fixture
def drawn(report, monkeypatch):
    """The figures that a test draws."""
    figures = []
    monkeypatch.setattr(report, "save", lambda figure, name: figures.append(figure))
    monkeypatch.setattr(report, "RESAMPLES", 20)
    yield figures
    report.plt.close("all")


def test_a_bar_is_a_mean_and_a_dot_a_run(report, drawn):
    """And a dashed line goes on with the mean of the defaults."""
    job, finals = run.experiment("a2c", "Hopper-v4"), [1.0, 2.0, 6.0]
    group = [fake_run(report, job, seed, final) for seed, final in enumerate(finals)]
    other = run.experiment("a2c", "Hopper-v4", gamma=0.9)
    report.bars({job: group, other: [fake_run(report, other, 1, 8.0)]},
                {job: "A2C", other: "A2C, another γ"}, "actions")
    (axis,) = drawn[0].axes
    assert [bar.get_width() for bar in axis.patches] == [3.0, 8.0]
    assert [(list(line.get_xdata()), line.get_linestyle()) for line in axis.lines] == [
        (finals, "None"), ([3.0, 3.0], "--"), ([8.0], "None")]


def test_a_star_is_on_the_bar_that_it_is_about(report, drawn):
    jobs = [run.experiment("a2c", "Hopper-v4", **flags)
            for flags in ({}, {"gamma": 0.9}, {"ent_coef": 0.1})]
    runs = {job: [fake_run(report, job, seed, level + seed) for seed in (1, 2, 3)]
            for job, level in zip(jobs, (0.0, 1.0, 50.0))}
    report.bars(runs, dict(zip(jobs, "abc")), "actions")
    assert [(text.get_text(), text.xy) for text in drawn[0].axes[0].texts] == [("*", (53.0, 2))]


def heights(axis):
    """What each line of a panel says, and the only height that it has."""
    return {line.get_label(): set(np.round(line.get_ydata(), 6)) for line in axis.lines}


def test_a_curve_is_a_mean_of_the_runs_it_names(report, drawn):
    """In every panel: the task, the peer, the learning rate that its title and legend say."""
    levels = itertools.count(1.0, 10.0)
    names = "ppo_continuous", "sb3_ppo", "tianshou_ppo"
    jobs = [job for job in (*run.compare(), *run.peers(), *run.ablation(), *run.health())
            if job.script in names and not job.variant]
    level = {job: next(levels) for job in dict.fromkeys(jobs)}
    runs = {job: [fake_run(report, job, seed, level[job] + seed) for seed in (1, 2, 6)]
            for job in level}
    offset = {"KL(π_old ‖ π)": ("approx_kl", 0.1), "clip fraction": ("clipfrac", 0.2),
              "entropy": ("entropy", 0.3), "explained variance": ("explained_variance", 0.4),
              "return": ("return_100", 0.0), "return, last 100 episodes": ("return_100", 0.0)}
    for group in runs.values():
        for one in group:
            one.columns |= {name: np.full(10, one.final + x) for name, x in offset.values()}
            one.settings["learning_rate"] = report.suites.settings_of(one.experiment).get(
                "learning_rate")
    for draw in (report.peers, report.annealing, report.health):
        draw(runs)
    report.compare({job: runs[job] for job in run.compare() if job in runs})
    peers_figure, annealing, health, compare = drawn
    default = {env_id: level[run.experiment("ppo_continuous", env_id)] + 3 for env_id in run.MUJOCO}
    for axis, env_id in zip(peers_figure.axes, run.MUJOCO):
        assert axis.get_title() == f"PPO, {env_id}"
        assert heights(axis) == {
            "ours (3 runs)": {default[env_id]},
            "SB3 (3 runs)": {level[run.Experiment("sb3_ppo", env_id)] + 3},
            "Tianshou (3 runs)": {level[run.Experiment("tianshou_ppo", env_id)] + 3}}
    for row, env_id in zip(np.reshape(annealing.axes, (2, 5)), ("Hopper-v4", "Walker2d-v4")):
        constant = run.experiment("ppo_continuous", env_id, anneal_lr=False)
        for axis, column in zip(row, ("approx_kl", "clipfrac", "entropy", "explained_variance",
                                      "return_100"), strict=True):
            name, x = offset[axis.get_title()]
            assert name == column
            assert heights(axis) == {"falls to 0 (3 runs)": {default[env_id] + x},
                                     "constant (3 runs)": {level[constant] + 3 + x}}
    assert heights(compare.axes[0])["PPO"] == {default[compare.axes[0].get_title()]}
    for axis in health.axes:
        _, x = offset[axis.get_title()]
        for job, text in zip(run.health(), ("healthy: 0.0003", "too small: 1e-05",
                                            "collapsing: 0.01")):
            assert heights(axis)[text] == {level[job] + 1 + x}


def test_points_of_the_other_figures(report, drawn):
    """By hand: the median speed, the mean at a γ, and a cell's place in a heat map."""
    rows = [{"round": i, "steps_per_second": x} for i, x in enumerate((100.0, 200.0, 600.0))]
    report.speed({"ppo-1x2048": {"sb3": rows}})
    assert [bar.get_width() for bar in drawn[0].axes[0].patches] == [200.0]
    gamma, job = next(iter(run.discount_sweep().items()))
    group = [fake_run(report, job, seed, final) for seed, final in enumerate((1.0, 2.0, 6.0))]
    for one in group:
        one.columns["episodic_length"] = np.arange(10.0) + one.final
    report.discount({job: group})
    for axis, points in zip(drawn[1].axes, ([1.0, 2.0, 6.0], [10.0, 11.0, 15.0])):
        dots, dash = axis.lines
        assert list(dots.get_ydata()) == points and set(dash.get_ydata()) == {np.mean(points)}
        assert [text.get_text() for text in axis.get_xticklabels()] == [f"{gamma:g}"]
    (size, cells), *_ = run.sensitivity_grid().items()
    report.sensitivity({job: [fake_run(report, job, 1, 1e6 * rate + clip)]
                        for (rate, clip), job in cells.items()})
    axis = drawn[2].axes[0]
    assert axis.get_title() == f"{size:,} transitions per rollout"
    rates, clips = ([float(text.get_text()) for text in labels]
                    for labels in (axis.get_xticklabels(), axis.get_yticklabels()))
    assert np.array_equal(axis.images[0].get_array(),
                          [[1e6 * rate + clip for rate in rates] for clip in clips])


def test_thirds_of_a_run(report):
    """By hand; a run has ten rows, four in its first third."""
    job = run.experiment("ppo_continuous", "Hopper-v4", anneal_lr=False)
    group = [fake_run(report, job, seed, 7.0) for seed in (1, 2)]
    for one, factor in zip(group, (1.0, 3.0)):
        for place, name in enumerate(("clipfrac", "approx_kl", "entropy", "policy_loss",
                                      "explained_variance"), 1):
            one.columns[name] = place * factor * np.repeat([0.1, 0.2, 0.4], [4, 3, 3])
    unchanged = run.experiment("ppo_continuous", "Hopper-v4")
    other = fake_run(report, unchanged, 1, 7.0)
    other.columns |= dict.fromkeys(group[0].columns, np.ones(10))
    falling, constant = report.thirds({unchanged: [other], job: group}).splitlines()[2:]
    assert falling == (
        "| Hopper-v4 | falling | 1 | 1.0, 1.0, 1.0 | 1.0, 1.0, 1.0 | 1.0, 1.0, 1.0 "
        "| 1.0, 1.0, 1.0 | 1.0, 1.0, 1.0 |")
    assert constant == (
        "| Hopper-v4 | constant | 2 | 0.20, 0.40, 0.80 | 0.40, 0.80, 1.6 | 0.60, 1.2, 2.4 "
        "| 0.80, 1.6, 3.2 | 1.0, 2.0, 4.0 |")


def test_tables_of_classic_tasks_and_of_trials(report):
    job, *_ = (job for job in run.compare() if job.env_id == "LunarLander-v3")
    trial = run.experiment("trpo", "Hopper-v4", variant="beta", gamma=0.9)
    runs = {one: [fake_run(report, one, 1, 5.0), fake_run(report, one, 2, 7.0)]
            for one in (job, trial)}
    assert report.classic(runs).splitlines()[2:] == [
        f"| {job.script} | LunarLander-v3 | 10,000 | 2 | 6 ± 1 | 5 | 7 ± 1 | `{job.flags}` |"]
    assert report.trials(runs).splitlines()[3:] == [
        "| trpo + beta | Hopper-v4 | `--gamma 0.9` | 2 | 6 ± 1 | 5 | 7 ± 1 |"]


def test_lines_of_a_panel_have_colours_of_their_own(report):
    scripts = {report.NAMES[job.script]: job.script for job in run.compare()}
    for name, libraries in report.LIBRARIES.items():
        colours = [report.COLOURS[scripts[name]],
                   *(report.PEER_COLOURS[library] for library in libraries.values())]
        assert len(set(colours)) == len(colours)


def test_committed_results(committed):
    """Today's defaults gave them; no run is in two tables."""
    found = [run.read(path) for path in run.tables(ROOT / "benchmarks/results")]
    assert len({one for table in found for one in table}) == sum(map(len, found)) > 400
    for table in found:
        for (job, seed), rows in table.items():
            assert run.is_done(job, rows), f"{job.name}, seed {seed}: settings of another time"
            assert len(rows) <= run.POINTS and float(rows[-1]["return_100"]) > -2_000
            steps = int(rows[-1]["global_step"])  # a run stops when no further iteration fits
            assert 0.97 < steps / json.loads(rows[-1]["settings"])["total_timesteps"] < 1.05
            assert len(json.loads(rows[-1]["evaluation"])) >= 10 or job.script == "cleanrl_ppo"


def test_a_checkout_one_can_look_through():
    """The whole repository has at most 120 files and 8 MB."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in files.stdout.split("\0") if name]
    assert len(paths) <= 120
    assert sum(path.stat().st_size for path in paths if path.exists()) <= 8e6


@pytest.mark.parametrize("name, file", [
    ("published", "README.md"), ("against_peers", "benchmarks/README.md"),
    ("classic", "benchmarks/README.md"),
    ("engstrom", "benchmarks/README.md"), ("thirds", "benchmarks/README.md"),
    ("distributions", "benchmarks/README.md"), ("untuned", "benchmarks/README.md"),
    ("sogang", "benchmarks/README.md")])
def test_tables_of_the_readme(report, committed, name, file):
    """The tables of the two READMEs are those that report.py makes from the committed runs."""
    table = getattr(report, name)(committed)
    assert table.strip() in (ROOT / file).read_text()
    assert (ROOT / f"benchmarks/tables/{name}.md").read_text() == table


def test_table_of_the_defaults(report):
    table = report.hyperparameters()
    assert "| `--target-kl` |  |  | off | off | 0.04 |" in table.splitlines()
    assert "| `--total-timesteps` | 200,000 | 200,000 | 100,000 | 1,000,000 | 1,000,000 |" in table
    assert table.strip() in (ROOT / "benchmarks/defaults.md").read_text()


def readme(name="README.md") -> str:
    """In one line, as a sentence may go on in the next."""
    return " ".join((ROOT / name).read_text().split())


RANGES = (  # of README: a sentence, and the experiments of run.lectures whose finals it gives
    ("{} (to go); {} (whole return); {} (minus V).", "to go", "whole return", "minus V"),
    ("{}, without a critic (default: {}).", "GRPO", "REINFORCE"),
    ("{} (λ = 0), {} (0.98), {} (1):", "λ = 0", "λ = 0.98", "λ = 1"),
    ("{} with it, {} without.", "δ = 1", "δ = 1, no line search"),
    ("return {} at the end", "rate of 0.1"),
    ("{} with the penalty, {} without.", "KL penalty", "clipping"),
    ("{} shared with a c_v of 0.5, {} shared with 50, {} with separate networks", "shared",
     "shared, 50", "clipping"),
    ("ends at a return of {}, by default at {} (seeds", "flat", "not flat"),
    ("ends at {}, with the default `--clip-coef` at {}.", "unstable", "stable"))


@pytest.mark.parametrize("sentence, names", [(sentence, names) for sentence, *names in RANGES])
def test_ranges_of_the_readme(committed, sentence, names):
    """The smallest and the largest final of seeds 1 to 3, from the committed runs."""
    finals = [[one.final for one in committed[run.lectures()[name]]] for name in names]
    assert all(len(group) == 3 for group in finals)
    text = sentence.format(*(f"{min(group):.0f} to {max(group):.0f}" for group in finals))
    assert text in readme()


def test_means_of_the_readme(report, committed):
    """What the lecture table says of suites other than lectures, and of the scripts."""
    default = run.experiment("ppo_continuous", "Walker2d-v4")

    def mean(env_id, script="ppo_continuous", **changes):
        group = committed[run.experiment(script, env_id, **changes)]
        return f"{np.mean([one.final for one in group]):,.0f}"

    squashed = mean("Walker2d-v4", variant="squashed_gaussian")
    limits, hopper_limits = (mean(env_id, variant="time_limits_terminate")
                             for env_id in ("Walker2d-v4", "Hopper-v4"))
    ppo, hopper = mean("Walker2d-v4"), mean("Hopper-v4")
    minibatches = {size: f"{np.mean([one.final for one in committed[job]]):,.0f}"
                   for size, job in run.minibatch_sweep().items()}
    assert len(committed[default]) == 10
    sentences = [
        f"PPO has {limits} instead of {ppo} on Walker2d-v4 (p",
        f"{hopper_limits} instead of {hopper} on Hopper-v4",
        f"on Hopper-v4 PPO has {hopper} (10 runs), {mean('Hopper-v4', norm_adv=False)} without "
        f"standardising (4), {mean('Hopper-v4', clip_vloss=True)} with value clipping (4); on "
        f"Walker2d-v4 {ppo}, {mean('Walker2d-v4', norm_adv=False)}, "
        f"{mean('Walker2d-v4', clip_vloss=True)}.",
        f"normalising observations matters ({mean('Walker2d-v4', norm_obs=False)} without it, "
        f"{ppo} with it)",
        f"Walker2d-v4 {ppo} (10 runs), squashed {squashed} (3 runs)",
        f"{minibatches[32]} with 32 transitions, {minibatches[2048]} with all 2,048"]
    for script, env_id, settings in (
            ("reinforce", "CartPole-v1", {}), ("a2c", "CartPole-v1", {}),
            ("ppo_discrete", "CartPole-v1", {}), ("ppo_continuous", "HalfCheetah-v4", {}),
            ("trpo", "HalfCheetah-v4", {})):
        group = committed[run.experiment(script, env_id, **settings)]
        finals = report.spread(np.array([one.final for one in group]))
        sentences.append(f"`python {script}.py` | {finals} |")
    assert [sentence for sentence in sentences if sentence not in readme()] == []


def test_metrics_of_the_readme(report, committed):
    """KL, β, step fraction and thirds of a run, as the lecture table has them."""
    runs = {name: committed[job] for name, job in run.lectures().items()}
    first_kl = [one.columns["approx_kl"][0] for one in runs["rate of 0.1"]]
    thirds = report.thirds(committed).splitlines()[2].split("|")
    sentences = [f"KL {min(first_kl):.0f} to {max(first_kl):.0f} in the first update",
                 f"explained variance is already {thirds[8].split(',')[0].strip()}"]
    for line, text in ((3, "rate is constant**: on Hopper-v4{}in the thirds of a run."),
                       (2, "If it falls to 0:{}")):
        cells = report.thirds(committed).splitlines()[line].split("|")
        sentences.append(text.format(cells[4]).rstrip())
    assert [sentence for sentence in sentences if sentence not in readme()] == []
    kl = [max(one.columns["kl"].max() for one in runs[name])
          for name in ("δ = 1", "δ = 1, no line search")]
    shortest = min(one.columns["step_fraction"].min() for one in runs["δ = 1"])
    assert "KL is at most {:.2f} with it, {:.2f} without.".format(*kl) in readme()
    assert f"goes down to {shortest:.2f}. At the default δ it is 0.8 or 1." in readme()
    assert all(np.isin(one.columns["step_fraction"], (0.8, 1)).all() for one in runs["δ"])
    assert all((one.columns["clipfrac"] == 0).all() and (one.columns["approx_kl"] < 1e-5).all()
               for one in runs["flat"])
    assert all((one.columns["approx_kl"] > 1).any() for one in runs["unstable"])
    for one, other in zip(runs["dual clip"], runs["clipping"], strict=True):
        assert one.final == other.final and one.columns["ratio_max"].max() < 3
    for one in committed[run.health()[2]]:  # collapsed
        kl, clipfrac, variance = (np.median(np.array_split(one.columns[name], 2)[1])
                                  for name in ("approx_kl", "clipfrac", "explained_variance"))
        assert one.final < 50 and kl < 0.05 and 0.1 <= clipfrac <= 0.3 and variance > 0.99
        early = one.columns["global_step"] < 25_000
        assert one.columns["approx_kl"][early].max() > 100
        assert one.columns["clipfrac"][early].max() > 0.99
        assert one.columns["entropy"][-1] > one.columns["entropy"][0]
    assert sorted({f"{one.columns['beta'][-1]:.1g}" for one in runs["KL penalty"]}) == [
        "0.02", "0.03", "0.06"]


def test_no_peer_is_above_ours(report, committed):
    """README: those that ran are nowhere above ours beyond the noise, and how often ours is, also
    with Holm's correction: of n values of p the i-th smallest (from 0) is below 0.05 / (n − i), and
    so are all that are smaller."""
    stats = pytest.importorskip("scipy.stats")
    values, names = {"final": [], "evaluated": []}, {"final": [], "evaluated": []}
    for job in run.compare():
        for peer in report.LIBRARIES[report.NAMES[job.script]]:
            for theirs in filter(None, [committed.get(run.Experiment(peer, job.env_id))]):
                for statistic, found in values.items():
                    x, y = ([getattr(one, statistic) for one in group]
                            for group in (theirs, committed[job]))
                    if peer == "cleanrl_ppo" and statistic == "evaluated":  # it has none
                        continue
                    p = stats.ttest_ind(x, y, equal_var=False).pvalue
                    assert len(x) >= 5
                    assert p >= 0.05 or np.mean(x) < np.mean(y), (peer, job.env_id, statistic)
                    found.append(p)
                    names[statistic].append((peer, job.env_id))
    sampled, evaluated = (np.sort(found) < 0.05 for found in values.values())
    holm = [np.argmin([*(np.sort(p) < 0.05 / np.arange(len(p), 0, -1)), False])
            for p in values.values()]
    remain = [{compared[i] for i in np.argsort(p)[:number]}
              for p, compared, number in zip(values.values(), names.values(), holm)]
    assert remain[1] == {("tianshou_reinforce", "Hopper-v4"), ("tianshou_reinforce", "Walker2d-v4"),
                         ("sb3_ppo", "Hopper-v4")}
    assert remain[0] == remain[1] | {("cleanrl_ppo", "HalfCheetah-v4")}
    assert ("With Holm's correction three remain by both statistics: Tianshou's REINFORCE on "
            "Hopper-v4 and Walker2d-v4, and SB3's PPO on Hopper-v4. A fourth remains only while "
            "actions are sampled: CleanRL's PPO on HalfCheetah-v4." in readme())
    returns = [one.evaluated for one in committed[run.Experiment("sb3_ppo", "HalfCheetah-v4")]]
    *returns, highest = sorted(returns)
    assert (f"{returns[0]:,.0f} to {returns[-1]:,.0f} and, once in five runs, {highest:,.0f};"
            in readme("benchmarks/README.md"))
    assert "nowhere above ours beyond the noise" in readme()
    assert (f"beyond the noise in {sum(sampled)} of {len(sampled)} comparisons, in the evaluation "
            f"in {sum(evaluated)} of {len(evaluated)} (CleanRL has none).") in readme()


def test_the_closest_peer(report, committed):
    """Ours at its end, and in the last row before step 960,000, where the last episodes of
    Tianshou's PPO on HalfCheetah-v4 end."""
    stats = pytest.importorskip("scipy.stats")
    theirs = committed[run.Experiment("tianshou_ppo", "HalfCheetah-v4")]
    ours = committed[run.experiment("ppo_continuous", "HalfCheetah-v4")]
    means, p = {}, {}
    for end in (960_000, 1_000_000):
        y = [one.columns["return_100"][one.columns["global_step"] <= end][-1] for one in ours]
        means[end] = np.mean(y)
        p[end] = stats.ttest_ind([one.final for one in theirs], y, equal_var=False).pvalue
    text = readme("benchmarks/README.md")
    assert f"On HalfCheetah-v4 p is {p[1_000_000]:.3f} while actions are sampled" in text
    assert (f"before that step ours has {means[960_000]:,.0f}, and p is {p[960_000]:.3f}." in text)
    assert (f"(p = {p[1_000_000]:.3f}), has p = {p[960_000]:.3f} if both are read at the same step."
            in readme())


@pytest.mark.parametrize("script, env_id, published_as, above, sentence", [
    ("a2c", "HalfCheetah-v4", "A2C T", True,
     "A2C** is above the published numbers on HalfCheetah-v4 (p = {:.3f})"),
    ("tianshou_ppo", "HalfCheetah-v4", "PPO T", False, "below that (p = {:.3f})"),
    ("tianshou_reinforce", "Walker2d-v4", "REINFORCE T", False, "(304 and 391, p = {:.3f})"),
    ("tianshou_reinforce", "HalfCheetah-v4", "REINFORCE T", False, "(427 and 526, p = {:.2f})"),
    ("tianshou_reinforce", "Hopper-v4", "REINFORCE T", False, "(332 and 390, p = {:.2f})"),
    ("cleanrl_ppo", "HalfCheetah-v4", "PPO C", True, "three runs, within the noise (p = {:.2f})"),
    ("cleanrl_ppo", "Walker2d-v4", "PPO C", True, "2,288, also within the noise (p = {:.2f})")])
def test_against_published_numbers(report, committed, script, env_id, published_as, above,
                                   sentence):
    """Welch's test needs no more than means, deviations and numbers of runs."""
    stats = pytest.importorskip("scipy.stats")
    (job,) = [job for job in (*run.compare(), *run.peers()) if job[:2] == (script, env_id)]
    algorithm, letter = published_as.split()
    mean, deviation = published(report, env_id, algorithm, letter)
    finals = [one.final for one in committed[job]]
    assert (np.mean(finals) > mean) == above
    p = stats.ttest_ind_from_stats(np.mean(finals), np.std(finals, ddof=1), len(finals), mean,
                                   deviation, {"T": 10, "C": 3}[letter], equal_var=False).pvalue
    assert sentence.format(p) in readme("benchmarks/README.md")


def test_ppo_and_trpo_in_the_readme(report, committed):
    """Told apart while actions are sampled on no task, in the evaluation on one, on another by
    ranks."""
    stats = pytest.importorskip("scipy.stats")
    p = {}
    for env_id, statistic in itertools.product(run.MUJOCO, ("final", "evaluated")):
        ppo, trpo = ([getattr(one, statistic) for one in committed[run.experiment(
            script, env_id, total_timesteps=1_000_000)]] for script in ("ppo_continuous", "trpo"))
        assert env_id == "HalfCheetah-v4" or np.mean(trpo) > np.mean(ppo)
        p[env_id, statistic] = (stats.ttest_ind(ppo, trpo, equal_var=False).pvalue,
                                stats.mannwhitneyu(ppo, trpo, method="exact").pvalue)
    below = {where for where, values in p.items() if min(values) < 0.05}
    assert below == {("Hopper-v4", "evaluated"), ("Walker2d-v4", "evaluated")}
    welch, ranks = p["Hopper-v4", "evaluated"]
    text = readme("benchmarks/README.md")
    assert (f"above PPO's on Walker2d-v4 (Welch's t-test: p = "
            f"{p['Walker2d-v4', 'evaluated'][0]:.2f}).") in text
    assert f"does not tell them apart (p = {welch:.2f})" in text
    assert f"does (exact Mann-Whitney, p = {ranks:.3f})." in text


def test_stars_of_the_ablation(report, committed):
    """By Holm's correction three stay; alone, one of the seven has a star. What is said of time
    limits, also of the seeds that came first and those that were added."""
    stats = pytest.importorskip("scipy.stats")
    p = {}
    for job, title in report.ablation_titles().items():
        default = run.experiment(job.script, job.env_id)
        if job in committed and job != default:
            x, y = ([one.final for one in committed[which]] for which in (job, default))
            p[title, job.env_id] = stats.ttest_ind(x, y, equal_var=False).pvalue
    starred = [where for where, value in p.items() if value < 0.05]
    corrected = np.sort(list(p.values())) < 0.05 / np.arange(len(p), 0, -1)
    assert len(p) == 32 and len(starred) == 9 and np.argmin(corrected) == 3
    assert sorted(starred, key=p.get)[3:] == [
        (run.PPO_M, "Walker2d-v4"), (report.TRPO_M, "Humanoid-v4"),
        ("time limits taken for ends", "Walker2d-v4"), (run.PPO_M, "Humanoid-v4"),
        ("no ratio clipping", "Walker2d-v4"), ("time limits taken for ends", "Hopper-v4")]
    assert [where for where in starred if where[0] in run.ENGSTROM] == [
        ("no observation normalisation", "Walker2d-v4")]
    ends, text = {"variant": "time_limits_terminate"}, readme("benchmarks/README.md")

    def of(env_id, statistic="final", seeds=range(1, 11), **changes):
        group = committed[run.experiment("ppo_continuous", env_id, **changes)]
        return [getattr(one, statistic) for one in group if one.seed in seeds]

    def compared(statistic="final", seeds=range(1, 11), default_seeds=range(1, 11)):
        """p by Welch's test and p by ranks, each for the two tasks."""
        pairs = [(of(env_id, statistic, seeds, **ends), of(env_id, statistic, default_seeds))
                 for env_id in ("Walker2d-v4", "Hopper-v4")]
        assert all(len(x) == len(seeds) and len(y) == len(default_seeds) for x, y in pairs)
        return ([stats.ttest_ind(*pair, equal_var=False).pvalue for pair in pairs],
                [stats.mannwhitneyu(*pair, method="exact").pvalue for pair in pairs])

    added = range(5, 11)
    for which, sentence in (
            ({}, "(p = {:.3f} and {:.2f}; by ranks {:.2f} and {:.3f}; ten runs each,"),
            ({"seeds": range(1, 5)}, "had not settled it (p = {:.2f} and {:.2f} against"),
            ({"seeds": added, "default_seeds": added}, "to 10 it is {:.2f} and {:.3f}."),
            ({"seeds": added}, "ten runs p is {:.3f} and {:.3f}, against"),
            ({"seeds": added, "default_seeds": added, "statistic": "evaluated"},
             "by ranks (2,793 and 3,288, p = {3:.3f})"),
            ({"statistic": "evaluated"}, "p = {:.2f}; 2,896 and 3,106, p = {:.2f}; "
                                         "by ranks {:.2f} and {:.2f})")):
        welch, ranks = compared(**which)
        assert sentence.format(*welch, *ranks) in text
    for env_id in ("Walker2d-v4", "Hopper-v4"):
        for statistic in ("final", "evaluated"):
            means = np.mean(of(env_id, statistic, **ends)), np.mean(of(env_id, statistic))
            assert "{:,.0f} and {:,.0f}".format(*means) in text
        means = "{:,.0f} and {:,.0f} on".format(np.mean(of(env_id, **ends)), np.mean(of(env_id)))
        assert f"{means} {env_id.removesuffix('-v4')}" in text
        share = 1 - np.mean(of(env_id, **ends)) / np.mean(of(env_id))
        assert f"have an {100 * share:.0f} % lower mean" in text
    for sentence in ("Walker2d-v4 (p = {0:.3f}), 2,386", "Hopper-v4 (p = {1:.2f}). These are"):
        assert sentence.format(*compared()[0]) in readme()
    ranks = {title: stats.mannwhitneyu([one.final for one in committed[job]], of("Hopper-v4"),
                                       method="exact").pvalue
             for job, title in report.ablation_titles().items()
             if job[:2] == ("ppo_continuous", "Hopper-v4") and title != "PPO"}
    assert {title for title, value in ranks.items() if value < 0.05} == {
        "time limits taken for ends", run.PPO_M}
    assert (f"taken for ends (p = {ranks['time limits taken for ends']:.3f}) and PPO-M (p = "
            f"{ranks[run.PPO_M]:.2f}); γ = 0.99 has p = {ranks['γ = 0.99']:.3f}.") in text
    discounted = [(np.mean(of(env_id, gamma=0.99)), p["γ = 0.99", env_id])
                  for env_id in ("Hopper-v4", "Walker2d-v4")]
    (hopper, p_hopper), (walker, p_walker) = discounted
    assert (f"means ({hopper:,.0f} and {walker:,.0f}), within the noise (p = {p_hopper:.2f} and "
            f"{p_walker:.2f};") in text
    *_, aai, acli = report.engstrom(committed).splitlines()
    ratios = [float(x.replace(",", "")) / float(y.replace(",", ""))
              for x, y in zip(acli.split(" | ")[1:4], aai.split(" | ")[1:4])]
    assert "{:.1f}, {:.0f} and {:.1f} times in ours".format(*ratios) in text
    for env_id, changes, sentence in (
            ("Hopper-v4", run.BARE, "on Hopper (without the optimisations, p = {:.2f})"),
            ("Walker2d-v4", {}, "and Walker2d (with them, p = {:.2f}).")):
        pairs = {bool(settings): [[one.final for one in committed[
            run.experiment(script, env_id, **settings)]] for script in ("ppo_continuous", "trpo")]
                 for settings in ({}, run.BARE)}
        larger = max(pairs, key=lambda which: abs(np.subtract(*map(np.mean, pairs[which]))))
        p_larger = stats.ttest_ind(*pairs[larger], equal_var=False).pvalue
        assert larger == bool(changes) and p_larger > 0.05 and sentence.format(p_larger) in text
    loss = np.mean(of("Walker2d-v4")) - np.mean(of("Walker2d-v4", clip_coef=1e9))
    assert f"costs them 425, and us {loss:,.0f}." in text
    pair = of("Walker2d-v4", clip_coef=1e9, seeds=range(1, 5)), of(
        "Walker2d-v4", norm_obs=False, seeds=range(1, 5))
    p_pair = stats.ttest_ind(*pair, equal_var=False).pvalue
    assert f"the next lowest, no observation normalisation: p = {p_pair:.2f}.)" in text
    assert set(sorted(starred, key=p.get)[:3]) == {
        (report.TRPO_M, "Hopper-v4"), (report.TRPO_M, "Walker2d-v4"),
        ("no observation normalisation", "Walker2d-v4")}
    assert ("three of the nine stars stay: TRPO's on Hopper and Walker2d, and no observation "
            "normalisation on Walker2d.") in text and "neither star stays" in text


def published(report, env_id, algorithm, letter):
    """Mean and deviation (0 if none is printed); Tianshou's divide by n = 10, not by n − 1."""
    (text,) = [text for text in report.PUBLISHED[env_id, algorithm] if f" {letter}" in text]
    numbers = [float(x) for x in re.findall(r"[\d.]+", text.replace(",", ""))]
    deviation = numbers[1] if "±" in text else 0.0
    return numbers[0], deviation * ((10 / 9) ** 0.5 if letter == "T" else 1)


def test_untuned_tasks_in_the_readme(committed):
    """What is said of all of these tasks and of HumanoidStandup-v4, where a step pays the height of
    the torso, divided by 0.003, and 1, less what controls cost (at most 0.3), and impacts."""
    stats, text = pytest.importorskip("scipy.stats"), readme("benchmarks/README.md")
    runs = [one for job in run.untuned() for one in committed[job]]
    assert len(runs) == 40
    losses = [(one.best - one.final) / one.best for one in runs if one.final > 0]
    falls = [one.best - one.final for one in runs if one.final < 0]
    assert len(losses) == 30 and 0.03 < max(losses) <= 0.04 and "than 4 % below its best" in text
    assert len(falls) == 10 and 2.1 < max(falls) <= 2.2 and "ends more than 2.2 below it" in text
    ppo, trpo = ([one.final for one in committed[run.experiment(script, "HumanoidStandup-v4")]]
                 for script in ("ppo_continuous", "trpo"))
    p = stats.ttest_ind(ppo, trpo, equal_var=False).pvalue
    both = [[one.evaluated for one in committed[run.experiment(script, "HumanoidStandup-v4")]]
            for script in ("ppo_continuous", "trpo")]
    p_evaluated = stats.ttest_ind(*both, equal_var=False).pvalue
    ranks = stats.mannwhitneyu(*both, method="exact").pvalue
    heights = [0.003 * (final / 1_000 + rest) for final in ppo + trpo for rest in (-1, -0.7)]
    for sentence in (
            f"PPO has {np.mean(ppo):,.0f} and TRPO {np.mean(trpo):,.0f} "
            f"(not told apart, p = {p:.2f}; in the evaluation p = {p_evaluated:.2f}, by ranks "
            f"{ranks:.2f})",
            f"about {min(heights):.2f} to {max(heights):.2f} m"):
        assert sentence in text
    assert min(ppo + trpo) > 155_000 and "every run is above 155,000" in text


def test_humanoid_in_the_readme(report, committed):
    """The two READMEs, of Humanoid-v4: ours and the published numbers, the four agents, how PPO's
    episodes end, and the KL of PPO-M."""
    stats, text = pytest.importorskip("scipy.stats"), readme("benchmarks/README.md")
    agents = [committed[run.experiment(script, "Humanoid-v4", **changes)]
              for script in ("ppo_continuous", "trpo") for changes in ({}, run.BARE)]
    finals = [[one.final for one in group] for group in agents]
    ppo, ppo_m, trpo, trpo_m = finals
    assert [[one.seed for one in group] for group in agents] == [
        [1, 2, 3, 4, 5], [1, 2, 3, 4]] * 2
    p = [stats.ttest_ind(x, y, equal_var=False).pvalue
         for x, y in ((ppo, ppo_m), (trpo, trpo_m), (ppo, trpo), (ppo_m, trpo_m))]

    def against(group, algorithm, letter):
        """Welch's test against a published mean, which is exact if there is no deviation."""
        mean, deviation = published(report, "Humanoid-v4", algorithm, letter)
        return stats.ttest_ind_from_stats(
            np.mean(group), np.std(group, ddof=1), len(group), mean, deviation,
            {"T": 10, "C": 3}.get(letter, 80), equal_var=False).pvalue

    assert min(ppo) > 806 and 586 < np.mean(trpo) < 810
    above = [against(ppo, "PPO", letter) for letter in "ETC"]
    early = [against(ppo[:3], "PPO", letter) for letter in "ETC"]
    ranges = [f"(p = {min(above):.3f} to {max(above):.3f})",
              f"(p = {min(early):.2f} to {max(early):.2f})"]
    early_p = stats.ttest_ind(ppo[:3], trpo[:3], equal_var=False).pvalue
    ranks = stats.mannwhitneyu(ppo_m, trpo_m, method="exact").pvalue
    peaks = [one.columns["return_100"].max() for one in agents[1]]
    evaluation = [one.evaluated for one in agents[2]]
    trpo_plus, tianshou, in_evaluation = (
        against(group, "TRPO", letter) for group, letter in
        ((trpo, "E (TRPO+)"), (trpo, "T"), (evaluation, "T")))
    bare = stats.ttest_1samp(trpo, 586).pvalue
    kl, kl_m = ([one.columns["approx_kl"] for one in group] for group in agents[:2])
    medians = [np.median(one) for one in kl_m]
    assert min(map(np.min, kl_m)) > 1 and "Its KL is above 1 in every row of" in text
    steps, episodes = ([one.columns[name][-1] - one.columns[name][-10] for one in agents[0]]
                       for name in ("global_step", "episodes"))
    lengths = np.sort(np.divide(steps, episodes))
    per_step = [np.nansum(one.columns["episodic_return"][-10:])
                / np.nansum(one.columns["episodic_length"][-10:]) for one in agents[0]]
    for sentence in (
            *ranges, "Each of its five runs "
            "({:,.0f}, {:,.0f}, {:,.0f}, {:,.0f} and {:,.0f}) is above".format(*sorted(ppo)),
            f"{steps[0]:,.0f} steps",
            "lasts {:.0f}, {:.0f}, {:.0f}, {:.0f} and {:.0f} steps".format(*lengths),
            f"above {max(x for one in agents[0] for x in one.evaluation):,.0f}.",
            f"A step pays {min(per_step):.1f} to {max(per_step):.1f} there,",
            f"PPO is above TRPO, which has {np.mean(trpo):.0f} (p = {p[2]:.2f}; with seeds 1 to 3 "
            f"alone p was {early_p:.2f})",
            f"its counterpart (p {'< 0.001' if trpo_plus < 0.001 else ''})",
            f"T's 810 while actions are sampled (p = {tianshou:.2f}), and not told apart from it "
            f"in the evaluation ({np.mean(evaluation):.0f}, p = {in_evaluation:.2f})",
            f"without the optimisations (p = {bare:.3f})",
            f"PPO has {np.mean(ppo_m):.0f} without the optimisations and {np.mean(ppo):,.0f} with "
            f"them (p = {p[0]:.3f}), TRPO {np.mean(trpo_m):.0f} and {np.mean(trpo):.0f} "
            f"(p = {p[1]:.3f}).",
            f"rise to {min(peaks):.0f} to {max(peaks):.0f}, and end at {min(ppo_m):.0f} to "
            f"{max(ppo_m):.0f}.",
            f"runs are {min(medians):,.0f} to {max(medians):,.0f}); with the optimisations it is "
            f"at most {max(map(np.max, kl)):.2f}.",
            f"PPO is above TRPO with the optimisations (p = {p[2]:.2f}), and below it without them "
            f"(p = {p[3]:.2f}; by ranks {ranks:.2f})"):
        assert sentence in text, sentence
    for sentence in (f"PPO has {report.spread(np.array(ppo))} (five runs), above the published "
                     f"806, 787 and 716 beyond the noise {ranges[0]}.",
                     f"TRPO has {report.spread(np.array(trpo))}. That is below PPO "
                     f"(p = {p[2]:.2f}), and below the 1,030",
                     f"Tianshou's 810 (p = {tianshou:.2f}).",
                     f"above TRPO ({np.mean(ppo):,.0f} and {np.mean(trpo):.0f}, five runs each, "
                     f"p = {p[2]:.2f};"):
        assert sentence in readme(), sentence


def test_old_flags_of_a2c_in_the_readme(report, committed):
    """Of the old script and of today's, with seeds 1 to 10; and of the defaults."""
    stats, text = pytest.importorskip("scipy.stats"), readme("benchmarks/README.md")
    flagged = run.per_task()[0]
    default = run.experiment("a2c", "HalfCheetah-v4", total_timesteps=1_000_000)
    trials = report.load(ROOT / "benchmarks/results/trials.csv.gz")
    groups = (trials[flagged._replace(variant="before_rewriting")], committed[flagged],
              committed[default])
    assert [[one.seed for one in group] for group in groups] == [list(range(1, 11))] * 3
    old, new, usual = (np.array([one.final for one in group]) for group in groups)

    def p(x, y):
        return stats.ttest_ind(x, y, equal_var=False).pvalue

    for sentence in (
            f"A2C had {report.spread(old[:5])} there before",
            f"have {report.spread(usual)}; p = {p(old[:5], usual):.3f})",
            f"by the same old script, have {report.spread(old[5:])}, and all ten "
            f"{report.spread(old)} (p = {p(old, usual):.2f};",
            f"seeds 1 to 5 have {report.spread(new[:5])}, seeds 6 to 10 have "
            f"{report.spread(new[5:])}, and all ten {report.spread(new)} (",
            f"ten old runs (p = {p(old, new):.2f}) or from the defaults (p = {p(new, usual):.2f})"):
        assert sentence in text, sentence


def test_trials_on_humanoid_in_the_readme(report):
    trials = report.load(ROOT / "benchmarks/results/trials.csv.gz")
    two, constant, both = (trials[run.experiment("trpo", "Humanoid-v4", **changes)] for changes in
                           ({"target_kl": 0.1}, {"anneal_lr": False},
                            {"target_kl": 0.1, "anneal_lr": False}))
    finals, text = [one.final for one in two + constant + both], readme("benchmarks/README.md")
    assert [one.seed for one in two + constant + both] == [51, 52] * 3
    for sentence in (
            "seeds 51 and 52: {:.0f} and {:.0f} with `--target-kl 0.1`, {:.0f} and {:.0f} with "
            "`--no-anneal-lr`,".format(*finals),
            "and {4:.0f} and {5:.0f} with both.".format(*finals),
            "had {:.0f} and {:.0f} (".format(*(one.evaluated for one in constant))):
        assert sentence in text


def test_distributions_are_not_told_apart(committed):
    """Nowhere from the Gaussian with a learned σ; of the other pairs one is."""
    stats = pytest.importorskip("scipy.stats")
    groups, p = {(job.variant, job.env_id): committed[job] for job in run.actions()}, {}
    for (x, y), env_id, statistic in itertools.product(
            itertools.combinations(("", "annealed_std", "squashed_gaussian", "beta"), 2),
            run.MUJOCO, ("final", "evaluated")):
        values = [[getattr(one, statistic) for one in groups[name, env_id]] for name in (x, y)]
        p[x, y, env_id, statistic] = stats.ttest_ind(*values, equal_var=False).pvalue
    assert min(value for (x, *_), value in p.items() if not x) > 0.1
    below = [key for key, value in p.items() if value < 0.05]
    assert below == [("annealed_std", "squashed_gaussian", "Hopper-v4", "final")]
    assert f"squashed (p = {p[below[0]]:.2f})" in readme("benchmarks/README.md")


def test_speeds_of_the_readme(report):
    """From speed.csv, medians of the rounds."""
    measured = speed.read(ROOT / "benchmarks/results/speed.csv")

    def ratio(race, name, peer):
        return float(speed.ratios(measured[race][name], measured[race][peer]).split()[0])

    one, many = "ppo-1x2048", "ppo-16x128"
    assert (f"trains {ratio(one, 'eager', 'sb3'):.1f} times as fast as Stable-Baselines3 with one "
            f"environment and {ratio(many, 'eager', 'sb3'):.1f} times with 16; with `--compile`, "
            f"{ratio(one, 'compile', 'sb3'):.1f} and {ratio(many, 'compile', 'sb3'):.1f} times. "
            "SBX is SB3's version in JAX: with `--compile` our PPO is "
            f"{ratio(one, 'compile', 'sbx'):.1f} and {ratio(many, 'compile', 'sbx'):.1f} times as "
            f"fast as SBX, and without {ratio(one, 'eager', 'sbx'):.1f} and "
            f"{ratio(many, 'eager', 'sbx'):.2f} times.") in readme()
    assert (f"the ratios to SBX are {ratio(one, 'eager', 'sbx'):.1f} and "
            f"{ratio(one, 'compile', 'sbx'):.1f} (PPO, 1 × 2048), "
            f"{ratio(many, 'eager', 'sbx'):.2f} and {ratio(many, 'compile', 'sbx'):.1f} (16 × 128)."
            ) in readme("benchmarks/README.md")
    trpo, ppo, *compiled = (speed.median(measured[race][name], "steps_per_second")
                            for name in ("eager", "compile") for race in ("trpo-1x2048", one))
    assert (f"SB3's settings TRPO does {trpo:,.0f} steps/s, PPO {ppo:,.0f}; with `--compile`"
            " {:,.0f} and {:,.0f}.".format(*compiled)) in readme()


# --------------------------------------------------------------------------------------------------
# speed.py
# --------------------------------------------------------------------------------------------------
@pytest.fixture
def script(request, monkeypatch):
    return changeable(request.param, monkeypatch)


@pytest.mark.parametrize("script", ["a2c"], indirect=True)
@pytest.mark.parametrize("slow, part", [("actor_of", "acting"), ("make_batch", "learning"),
                                        ("update", "learning"), ("RunningStats.update", "learning"),
                                        ("Run.log", "learning"), ("Envs.step", "simulator")])
def test_all_of_an_iteration_is_measured(script, slow, part, monkeypatch):
    """Whatever train does in an iteration is counted, under its name: it is made slow here."""
    *owner, name = slow.split(".")
    owner = getattr(script, owner[0]) if owner else script
    function, calls = getattr(owner, name), []

    def slowed(*arguments):
        calls.append(1)
        time.sleep(0.02 if name == "step" else 0.1)
        return function(*arguments)

    monkeypatch.setattr(owner, name, slowed)
    monkeypatch.setattr(speed, "STEPS", 200)
    monkeypatch.setattr(speed, "WARM_UP", 80)
    found = speed.measure_ours("varied", "CartPole-v1", 8, 5, speed.A2C)
    assert len(calls) == 7 * {"Envs.step": 5, "RunningStats.update": 2}.get(slow, 1)
    assert found["steps"] == 200
    parts = {name: found[name] for name in ("simulator", "acting", "learning")}
    assert sum(parts.values()) == pytest.approx(found["seconds"]) and min(parts.values()) > 0
    assert parts[part] > 0.5  # what was slept; the rest takes 0.1 s, but more on a busy machine


def test_a_measurement_in_its_process():
    found = speed.measure("eager", "a2c-8x5-cartpole", speed.Options())
    assert set(found) == set(speed.COLUMNS[3:]) and min(found.values()) > 0
    parts = sum(found[name] for name in ("simulator", "acting", "learning"))
    assert parts == pytest.approx(1e6 / found["steps_per_second"])


def fake_python(tmp_path, *lines):
    path = tmp_path / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)
    return str(path)


def test_sbx_is_measured_by_its_own_python(tmp_path):
    """It is told to use one thread, and what to measure."""
    python = fake_python(tmp_path, 'echo "$@, $OMP_NUM_THREADS, $XLA_FLAGS, $PYTHONPATH" >'
                         f" {tmp_path}/seen", """echo '{"steps_per_second": 7.0}'""")
    found = speed.measure("sbx", "ppo-4x512", speed.Options(sbx=python))
    assert found == {"steps_per_second": 7.0}
    command, omp, xla, path = (tmp_path / "seen").read_text().strip().rsplit(", ", 3)
    assert command == "-c import speed; speed.work('sbx', 'ppo-4x512')" and omp == "1"
    assert "--xla_cpu_multi_thread_eigen=false" in xla
    assert str(ROOT / "benchmarks") in path.split(os.pathsep)


def test_a_compiled_contestant_that_was_not_compiled(tmp_path, monkeypatch):
    """A script goes on without --compile if that fails; speed.py does not."""
    said = "--compile: it failed"
    assert all(said in (ROOT / f"{script.__name__}.py").read_text() for script in SCRIPTS)
    monkeypatch.setattr(sys, "executable", fake_python(
        tmp_path, f"echo '{said}: no compiler'", """echo '{"memory": 7.0}'"""))
    with pytest.raises(SystemExit, match="no compiler"):
        speed.measure("compile", "a2c-8x5", speed.Options())


def test_contestants_and_rows(tmp_path, monkeypatch):
    """Contestants take turns; SBX is in PPO's races only; races that do not run keep their rows."""
    path, seen = tmp_path / "speed.csv", []
    path.write_text(",".join(speed.COLUMNS)
                    + "\ntrpo-1x2048,0,sb3,100,,,,350\na2c-8x5,0,sb3,1,,,,\n")

    def measure(name, race, options):
        seen.append((race, name))
        return {"steps_per_second": 20.0 if name == "sbx" else 10.0}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(sys, "argv", [
        "speed.py", "--races", "ppo-4x512", "a2c-8x5", "--rounds", "2", "--contestants", "sb3",
        "eager", "--sbx", "python", "--output", str(path)])
    speed.main()
    ppo, a2c = ["sb3", "eager", "sbx", "floor"], ["sb3", "eager"]
    assert seen == ([("ppo-4x512", name) for name in ppo + ppo]
                    + [("a2c-8x5", name) for name in a2c + a2c])
    found = speed.read(path)
    assert {race: list(rows) for race, rows in found.items()} == {
        "trpo-1x2048": ["sb3"], "ppo-4x512": ppo, "a2c-8x5": a2c}
    assert found["a2c-8x5"]["sb3"][0]["steps_per_second"] == 10
    assert "|  | SBX | 20 | 2.00 (2.00–2.00) |  |  |" in speed.table(found).splitlines()


def test_speed_table(tmp_path):
    """Ratios within a round, then the median of them; a cell is empty if nothing was measured."""
    path = tmp_path / "speed.csv"
    path.write_text(",".join(speed.COLUMNS) + """
a2c-8x5,0,sb3,100,,,,350
a2c-8x5,0,sb3-normalised,50,,,,350
a2c-8x5,0,eager,200,40,10,30,360
a2c-8x5,1,sb3,200,,,,352
a2c-8x5,1,sb3-normalised,200,,,,352
a2c-8x5,1,eager,600,44,12,32,362
""")
    assert speed.table(speed.read(path)).splitlines()[2:] == [
        "| `a2c.py`, 8 × 5, HalfCheetah-v4 | SB3 | 150 |  |  | 351 |",
        "|  | SB3, VecNormalize | 125 | 0.75 (0.50–1.00) |  | 351 |",
        "|  | ours | 400 | 2.50 (2.00–3.00) | 42, 11, 31 | 361 |"]


def test_speed_table_of_the_readme():
    measured = speed.read(ROOT / "benchmarks/results/speed.csv")
    assert measured and set(measured) <= set(speed.RACES)
    assert speed.table(measured).strip() in (ROOT / "benchmarks/README.md").read_text()
