"""Run a suite of trainings on all cores, and keep one compressed table per suite under results/.

    pip install -r benchmarks/requirements.txt
    python benchmarks/run.py compare                           # all runs of the suite not there yet
    python benchmarks/run.py compare --only Hopper --seeds 1 2 --compile
    python benchmarks/run.py compare --dry-run                 # only say what would run
    python benchmarks/run.py compare --cluster slurm --slurm partition=cpu mem_gb=4

A suite is data: experiments (script, environment, settings), each run with every seed. A run is
done when it is in a table of results/, whichever suite it was run for. So the same command goes on
after an interruption, and suites share the runs that they have in common. A run that was cut off
starts anew: no curve has a seam. A run that fails is reported, with its log, and does not stop the
others.
"""
import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
NOT_SETTINGS = {"env_id", "seed", "exp_name", "run_dir", "resume", "evaluate", "compile", "cuda",
                "track", "wandb_project_name", "wandb_entity", "capture_video"}
PEERS = ("sb3_ppo", "sb3_a2c", "sb3_trpo", "tianshou_ppo", "tianshou_reinforce", "cleanrl_ppo")
NOT_OURS = (*PEERS, "random")  # peers.py runs them


class Experiment(NamedTuple):
    """A script with settings on an environment; `variant` names a function of variants.py."""

    script: str
    env_id: str
    flags: str = ""  # those that are not the script's defaults, in the order of its Args
    variant: str = ""

    @property
    def name(self) -> str:
        label = self.flags.replace("--", "").replace(" ", "_") or "default"
        script = self.script + f"+{self.variant}" * bool(self.variant)
        return f"{script}__{self.env_id}__{label}"


def experiment(script: str, env_id: str, variant: str = "", **settings) -> Experiment:
    """Settings that the script does not have, or that are its defaults, are left out."""
    return Experiment(script, env_id, flags(script, settings), variant)


@functools.cache
def settings_of(job: Experiment) -> dict:
    """All settings of a run of this experiment: the script's defaults, changed by the flags. For a
    peer: the number of steps and what TIANSHOU in peers.py says."""
    if job.script in NOT_OURS:
        peers = importlib.import_module("peers")
        args = tyro.cli(peers.Args, args=[job.script, *job.flags.split()])
        training, hyperparameters = peers.TIANSHOU.get(job.script, ({}, {}))
        return {"total_timesteps": args.total_timesteps} | training | hyperparameters
    args = tyro.cli(importlib.import_module(job.script).Args, args=job.flags.split())
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def flags(script: str, settings: dict) -> str:
    changed = {f.name: settings[f.name]
               for f in dataclasses.fields(importlib.import_module(script).Args)
               if f.name not in NOT_SETTINGS and settings.get(f.name, f.default) != f.default}
    return " ".join(f"--{'no-' * (value is False)}{name.replace('_', '-')}"
                    + ("" if isinstance(value, bool) else f" {value}")
                    for name, value in changed.items())


# --------------------------------------------------------------------------------------------------
# Suites
# --------------------------------------------------------------------------------------------------
MUJOCO = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
CLASSIC = {  # environment: PPO's script, settings for all algorithms, more for PPO
    "CartPole-v1": ("ppo_discrete", {"total_timesteps": 200_000, "gamma": 0.99}, {}),
    "LunarLander-v3": ("ppo_discrete", {"total_timesteps": 500_000, "gamma": 0.999,
                                        "gae_lambda": 0.98, "ent_coef": 0.01},
                       {"num_envs": 16, "num_steps": 128}),
    "Pendulum-v1": ("ppo_continuous", {"total_timesteps": 200_000, "gamma": 0.9},
                    {"learning_rate": 1e-3, "gae_lambda": 0.9, "clip_coef": 0.2,
                     "log_std_init": -0.5}),
}
ENGSTROM = {  # the code-level optimisations of Engstrom et al. 2020, each switched off
    "no reward scaling": {"norm_reward": False}, "no reward clipping": {"clip_reward": 1e9},
    "no observation normalisation": {"norm_obs": False},
    "no observation clipping": {"clip_obs": 1e9}, "no orthogonal initialisation":
    {"ortho_init": False}, "no annealing": {"anneal_lr": False}, "ReLU": {"activation": "relu"},
}
BARE = {name: value for changes in (*ENGSTROM.values(), {"max_grad_norm": 0.0})
        for name, value in changes.items()}
PPO_M = "PPO-M, the first seven off"
ABLATIONS = {
    "PPO": {}, **ENGSTROM, "γ = 0.99": {"gamma": 0.99},
    "value clipping": {"clip_vloss": True}, "gradient clipping": {"max_grad_norm": 0.5},  # on
    "no advantage standardisation": {"norm_adv": False}, PPO_M: BARE,
    "no ratio clipping": {"clip_coef": 1e9},
}


def compare() -> list[Experiment]:
    """The five scripts on six tasks: on MuJoCo with their defaults, on the classic tasks with one γ
    (and λ, c_e) for all; PPO alone has settings of its own on two of them."""
    found = [experiment(script, env_id, total_timesteps=1_000_000) for env_id in MUJOCO
             for script in ("reinforce", "a2c", "ppo_continuous", "trpo")]
    for env_id, (ppo, settings, ppo_settings) in CLASSIC.items():
        found += [experiment(script, env_id, **settings) for script in ("reinforce", "a2c", "trpo")]
        found += [experiment(ppo, env_id, **settings, **ppo_settings)]
    return found


def per_task() -> list[Experiment]:
    """Other settings for one task, on the seeds of compare; CartPole-v1 by PPO's defaults; and
    Pendulum-v1 by A2C and REINFORCE, with ReLU, with which they learn it, and with tanh."""
    pendulum = [("a2c", {"num_envs": 16, "num_steps": 8, "gae_lambda": 0.9, "norm_adv": False}),
                ("reinforce", {"learning_rate": 0.01, "norm_reward": False})]
    return [experiment("a2c", "HalfCheetah-v4", total_timesteps=1_000_000, num_steps=16,
                       learning_rate=1e-3, gae_lambda=0.95, log_std_init=-1.0),
            experiment("ppo_discrete", "CartPole-v1"),
            *(experiment(script, "Pendulum-v1", gamma=0.9, log_std_init=0.0, activation=activation,
                         **settings)
              for script, settings in pendulum for activation in ("relu", "tanh"))]


def ablation() -> list[Experiment]:
    """PPO and TRPO with and without the code-level optimisations, and time limits as ends; on
    Humanoid, where a run is four times as long, the four agents of Engstrom's table alone."""
    found = []
    for env_id in ("Hopper-v4", "Walker2d-v4"):
        found += [experiment("ppo_continuous", env_id, **changes) for changes in ABLATIONS.values()]
        found += [experiment("ppo_continuous", env_id, variant="time_limits_terminate")]
        found += [experiment("trpo", env_id), experiment("trpo", env_id, **BARE)]
    return found + [experiment(script, "Humanoid-v4", total_timesteps=1_000_000, **changes)
                    for script in ("ppo_continuous", "trpo") for changes in ({}, BARE)]


COARSE = {"script": "ppo_continuous", "env_id": "Hopper-v4", "total_timesteps": 300_000}


def sensitivity_grid() -> dict[int, dict[tuple[float, float], Experiment]]:
    """Batch size → (learning rate, clip range) → experiment."""
    return {8 * num_steps: {(lr, clip): experiment(**COARSE, learning_rate=lr, clip_coef=clip,
                                                   num_steps=num_steps,
                                                   num_minibatches=num_steps // 16)  # M = 128
                            for lr in (1e-4, 3e-4, 1e-3) for clip in (0.1, 0.2, 0.4)}
            for num_steps in (64, 256, 1024)}


def lambda_sweep() -> dict[float, Experiment]:
    return {x: experiment(**COARSE, gae_lambda=x) for x in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)}


def minibatch_sweep() -> dict[int, Experiment]:
    """Transitions per gradient step, of 2,048 per rollout; the number of epochs stays."""
    return {size: experiment(**COARSE, num_minibatches=2048 // size)
            for size in (32, 64, 128, 256, 512, 1024, 2048)}


def sensitivity() -> list[Experiment]:
    """PPO on Hopper, 300,000 steps: learning rate × clip range × batch size; λ; minibatch size."""
    grid = [job for cells in sensitivity_grid().values() for job in cells.values()]
    return [*grid, *lambda_sweep().values(), *minibatch_sweep().values()]


def discount_sweep() -> dict[float, Experiment]:
    return {gamma: experiment("ppo_continuous", "Hopper-v4", gamma=gamma)
            for gamma in (0.98, 0.985, 0.99, 0.993, 0.995, 0.998)}


def discount() -> list[Experiment]:
    """PPO on Hopper with six γ: how far ahead must a policy look to mind a fall?"""
    return list(discount_sweep().values())


def health() -> list[Experiment]:
    """PPO on Hopper at three learning rates: healthy, too small, collapsing."""
    return [experiment(**COARSE, learning_rate=lr) for lr in (3e-4, 1e-5, 1e-2)]


def actions() -> list[Experiment]:
    """PPO's distribution over bounded actions: a clipped Gaussian, with σ learned (ours) or falling
    on a schedule; a squashed one; Beta."""
    return [experiment("ppo_continuous", env_id, variant=variant) for env_id in MUJOCO
            for variant in ("", "annealed_std", "squashed_gaussian", "beta")]


UNTUNED = ("InvertedPendulum-v4", "Pusher-v5", "HumanoidStandup-v4", "Humanoid-v4")


def untuned() -> list[Experiment]:
    """PPO and TRPO with their defaults on four tasks that nobody tuned for. (Pusher-v4 needs a
    MuJoCo before 3.)"""
    return [experiment(script, env_id, total_timesteps=1_000_000) for env_id in UNTUNED
            for script in ("ppo_continuous", "trpo")]


def sogang() -> list[Experiment]:
    """PPO, and actions drawn at random, on the tasks of Sogang's benchmark table, over its steps;
    on the classic tasks with the settings of compare, but CartPole-v1 with the defaults."""
    classic = {job.env_id: job for job in compare() if job.script.startswith("ppo")}
    ppo = [experiment("ppo_discrete", "CartPole-v1"), classic["LunarLander-v3"],
           experiment("ppo_continuous", "BipedalWalker-v3", total_timesteps=2_000_000),
           classic["Pendulum-v1"],
           experiment("ppo_continuous", "HalfCheetah-v4", total_timesteps=2_000_000)]
    return ppo + [Experiment("random", job.env_id, "--total-timesteps 100000") for job in ppo]


def peers() -> list[Experiment]:
    """Other libraries with their own settings: peers.py. CleanRL is run if $CLEANRL names it."""
    return [Experiment(name, env_id) for name in PEERS for env_id in MUJOCO]


def lectures() -> dict[str, Experiment]:
    """What README's lecture table and section on healthy runs have measured, by short names."""
    short = {"env_id": "CartPole-v1", "total_timesteps": 50_000}
    bare = short | {"gamma": 1.0, "norm_adv": False, "baseline": "none"}
    trpo = short | {"gamma": 0.99}
    flat = {"env_id": "CartPole-v1", "total_timesteps": 20_480}
    return {
        "to go": experiment("reinforce", **bare),
        "whole return": experiment("reinforce", **bare, reward_to_go=False),
        "minus V": experiment("reinforce", **bare | {"baseline": "value"}),
        "REINFORCE": experiment("reinforce", **short),
        "GRPO": experiment("reinforce", **short, baseline="group"),
        **{f"λ = {x:g}": experiment("a2c", "CartPole-v1", total_timesteps=100_000, gae_lambda=x)
           for x in (0.0, 0.98, 1.0)},
        "δ = 1": experiment("trpo", **trpo, target_kl=1.0),
        "δ = 1, no line search": experiment("trpo", **trpo, target_kl=1.0, line_search=False),
        "δ": experiment("trpo", **trpo),
        "rate of 0.1": experiment("ppo_discrete", "CartPole-v1", total_timesteps=16_384,
                                  learning_rate=0.1, max_grad_norm=0.0, anneal_lr=False),
        "clipping": experiment("ppo_discrete", **short),
        "KL penalty": experiment("ppo_discrete", **short, variant="kl_penalty"),
        "dual clip": experiment("ppo_discrete", **short, variant="dual_clip"),
        "shared": experiment("ppo_discrete", **short, variant="shared_features"),
        "shared, 50": experiment("ppo_discrete", **short, variant="shared_features", vf_coef=50.0),
        "flat": experiment("ppo_discrete", **flat, learning_rate=1e-6),
        "not flat": experiment("ppo_discrete", **flat),
        "unstable": experiment("ppo_discrete", "CartPole-v1", clip_coef=1e9, learning_rate=0.003,
                               anneal_lr=False),
        "stable": experiment("ppo_discrete", "CartPole-v1", learning_rate=0.003, anneal_lr=False),
    }


def smoke() -> list[Experiment]:
    """A few seconds: does the machinery work?"""
    return [experiment("reinforce", "CartPole-v1", total_timesteps=4_000),
            experiment("a2c", "CartPole-v1", total_timesteps=4_096)]


SUITES = {suite.__name__: suite for suite in (compare, per_task, ablation, sensitivity,
                                              discount, health, actions, lectures, untuned,
                                              sogang, peers, smoke)}


def experiments(suite: str) -> list[Experiment]:
    found = SUITES[suite]()
    return list(dict.fromkeys(found.values() if isinstance(found, dict) else found))


# --------------------------------------------------------------------------------------------------
# One run
# --------------------------------------------------------------------------------------------------
def code_of(job: Experiment) -> str:
    """Which code a run executes: the beginning of its hash ("" for other libraries)."""
    if job.script in NOT_OURS:
        return ""
    names = [f"{job.script}.py"] + ["benchmarks/variants.py"] * bool(job.variant)
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()[:12]


def execute(job: Experiment, seed: int, runs: Path, extra: list[str]) -> Path:
    """Train; the run directory, under runs/. RuntimeError if it did not get to its end."""
    folder = runs / f"{job.name}__seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    script = [str(ROOT / f"{job.script}.py")]
    if job.script in NOT_OURS:
        script, extra = [str(ROOT / "benchmarks/peers.py"), job.script], []
    if job.variant:
        script = [str(ROOT / "benchmarks/variants.py"), job.script, job.variant]
    command = [sys.executable, *script, "--env-id", job.env_id, "--seed", str(seed), "--run-dir",
               str(folder), *job.flags.split(), *extra]
    (folder / "code").write_text(code_of(job))
    before = set(folder.iterdir())
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    complete = [path for path in set(folder.iterdir()) - before
                if (path / "evaluation.json").exists()]
    if code or not complete:
        raise RuntimeError(f"{folder.name}: exit code {code}, see {folder / 'log.txt'}")
    return complete[0]


def finished(job: Experiment, seed: int, runs: Path) -> Path | None:
    """The directory of a run that came to its end, with these settings, and is in no table yet."""
    for path in sorted((runs / f"{job.name}__seed{seed}").glob("*/evaluation.json"))[::-1]:
        with contextlib.suppress(ValueError, OSError):  # a file that is not whole
            args, _ = (json.loads((path.parent / name).read_text())
                       for name in ("args.json", "evaluation.json"))
            if (settings_of(job).items() <= (args | args.get("settings", {})).items()
                    and not (path.parent / "in_table").exists()):
                return path.parent
    return None


# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------
KEY = (*Experiment._fields, "seed")  # what tells a run from others
LAST = ("evaluation", "settings", "versions")  # as JSON, in the last row of a run alone
POINTS = 100  # rows per run, at most


def thin(run_dir: Path, job: Experiment) -> list[dict[str, str]]:
    """A run's rows for a table: every n-th of progress.csv, the last among them, and what is only
    in a run's last row."""
    args = json.loads((run_dir / "args.json").read_text())
    evaluation = json.loads((run_dir / "evaluation.json").read_text())["returns"]
    versions = {k: args[k] for k in ("device", "python", "torch", "numpy", "gymnasium", "mujoco",
                                     "compile") if k in args}
    hashed = run_dir.parent / "code"
    if hashed.exists() and hashed.read_text():
        versions["code"] = hashed.read_text()
    settings = args.get("settings") or {name: args[name] for name in settings_of(job)}
    rows = list(csv.DictReader((run_dir / "progress.csv").open()))
    rows = rows[::-1][::-(-len(rows) // POINTS)][::-1]
    key = {name: str(value) for name, value in (*job._asdict().items(), ("seed", args["seed"]))}
    rows = [key | {name: shorten(x) for name, x in row.items()} for row in rows]
    last = ([round(x, 1) for x in evaluation], settings, versions)
    rows[-1] |= {name: json.dumps(x, ensure_ascii=False) for name, x in zip(LAST, last)}
    return rows


def shorten(cell: str) -> str:
    return f"{float(cell):.5g}" if "." in cell else cell


def read(path: Path) -> dict[tuple[Experiment, int], list[dict[str, str]]]:
    """A table: run → its rows. Empty if there is no such file."""
    found = {}
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                *job, seed = (row[name] for name in KEY)
                found.setdefault((Experiment(*job), int(seed)), []).append(row)
    return found


def write(path: Path, runs: dict[tuple[Experiment, int], list[dict[str, str]]]) -> None:
    """A table; the same runs give the same text, in whatever order they came."""
    named = {name for rows in runs.values() for row in rows for name, cell in row.items() if cell}
    first = [*KEY, "global_step", "return_100"]
    text = io.StringIO()
    table = csv.DictWriter(text, [*first, *sorted(named - {*first, *LAST}), *LAST], restval="",
                           extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for run in sorted(runs):
        table.writerows(runs[run])
    partial = path.with_suffix(".part")
    partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    partial.replace(path)


def tables(results: Path) -> list[Path]:
    """All of results/, but the trials, which no suite shares."""
    return [path for path in sorted(results.glob("*.csv.gz")) if path.name != "trials.csv.gz"]


def is_done(job: Experiment, rows: list[dict[str, str]]) -> bool:
    """With these settings, that is: not at a time when a default was another."""
    return settings_of(job).items() <= json.loads(rows[-1]["settings"]).items()


@contextlib.contextmanager
def locked(folder: Path):
    """One command at a time changes the tables of a folder; others wait (but not on Windows)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(ImportError):
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def add(suite: Path, job: Experiment, seed: int, run_dir: Path) -> None:
    """A finished run goes into the suite's table, or takes the place of an older one in whichever
    table that is. A file in its directory says so: it is not added twice."""
    rows = thin(run_dir, job)
    with locked(suite.parent):
        home = next((path for path in tables(suite.parent) if (job, seed) in read(path)), suite)
        write(home, read(home) | {(job, seed): rows})
    (run_dir / "in_table").touch()


# --------------------------------------------------------------------------------------------------
# All runs
# --------------------------------------------------------------------------------------------------
@dataclass
class Options:
    suite: Annotated[Literal[tuple(SUITES)], tyro.conf.Positional]  # which suite to run
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # each experiment runs with each of them
    only: tuple[str, ...] = ()  # only experiments with all of these in what --dry-run prints
    jobs: int = os.cpu_count() or 1  # runs at once, one thread each
    compile: bool = False  # pass --compile on: worth it from about 500,000 steps
    cuda: bool = False  # train on the GPU if there is one
    dry_run: bool = False  # print what would run
    results: Path = ROOT / "benchmarks/results"  # where the tables are
    runs: Path = ROOT / "runs/benchmarks"  # run directories and logs
    cluster: Literal["", "slurm", "local"] = ""  # submit the runs, by submitit
    slurm: tuple[str, ...] = ()  # submitit's parameters for Slurm, name=value


def executor_for(options: Options):
    if not options.cluster:
        return ThreadPoolExecutor(options.jobs)
    import submitit
    executor = submitit.AutoExecutor(options.runs / "submitit", cluster=options.cluster)
    parameters = dict(pair.split("=", 1) for pair in options.slurm)
    executor.update_parameters(**{"timeout_min": 240, "cpus_per_task": 1} | {
        name if name in ("timeout_min", "mem_gb") else f"slurm_{name}":
        int(value) if value.isdigit() else value for name, value in parameters.items()})
    return executor


def main() -> None:
    options = tyro.cli(Options, description=__doc__.splitlines()[0])
    table, runs = options.results.resolve() / f"{options.suite}.csv.gz", options.runs.resolve()
    wanted = [(job, seed) for seed in options.seeds for job in experiments(options.suite)
              if all(part in job.name for part in options.only)
              and (job.script != "cleanrl_ppo" or "CLEANRL" in os.environ)]
    there = {run: rows for path in tables(table.parent) for run, rows in read(path).items()}
    missing = [run for run in wanted if run not in there or not is_done(run[0], there[run])]
    if options.dry_run:
        print(*(f"{job.name}__seed{seed}" for job, seed in missing), sep="\n")
    else:  # an earlier command may have been killed before it added what its runs had finished
        for run in [run for run in missing if finished(*run, runs)]:
            add(table, *run, finished(*run, runs))
            missing.remove(run)
    print(f"{options.suite}: {len(wanted)} runs, {len(wanted) - len(missing)} of them done")
    if options.dry_run or not missing:
        return
    extra = ["--compile"] * options.compile + ["--no-cuda"] * (not options.cuda)
    executor, failed = executor_for(options), 0
    futures = {executor.submit(execute, *run, runs, extra): run for run in missing}
    try:
        with tqdm(total=len(futures), unit="run") as bar:
            while futures:
                time.sleep(0.5)
                for future in [future for future in futures if future.done()]:
                    run = futures.pop(future)
                    try:
                        add(table, *run, future.result())
                    except Exception as error:  # whatever it is, the other runs go on
                        failed += 1
                        bar.write(f"failed: {error or type(error).__name__}")
                    bar.update()
    except KeyboardInterrupt:  # the runs under way on this machine have got it, too, and stop
        print("\nstopped; the same command goes on")
        sys.exit(130)
    finally:
        for future in futures:
            future.cancel()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
