"""Run a suite of trainings on all cores, and keep one thinned CSV per run under results/.

    pip install -r benchmarks/requirements.txt
    python benchmarks/run.py compare                           # all runs of the suite not there yet
    python benchmarks/run.py compare --only Hopper --seeds 1 2 --compile
    python benchmarks/run.py compare --dry-run                 # only say what would run
    python benchmarks/run.py compare --cluster slurm --slurm partition=cpu mem_gb=4

A suite is data: experiments (script, environment, settings), each run with every seed. A run is
done when its CSV is in results/. So the same command goes on after an interruption, and suites
share the runs that they have in common. A run that was cut off starts anew: no curve has a seam. A
run that fails is reported, with its log, and does not stop the others.
"""
import csv
import dataclasses
import importlib
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


def settings_of(job: Experiment) -> dict:
    """All settings of a run of this experiment: the script's defaults, changed by the flags."""
    args = tyro.cli(importlib.import_module(job.script).Args, args=job.flags.split())
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


def is_done(path: Path, job: Experiment) -> bool:
    """The CSV is there, and with these settings: not from a time when a default was another."""
    if not path.exists():
        return False
    with path.open() as file:
        return json.loads(file.readline()[2:])["settings"] == settings_of(job)


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
ABLATIONS = {
    "PPO": {}, **ENGSTROM, "γ = 0.99": {"gamma": 0.99},
    "value clipping": {"clip_vloss": True}, "gradient clipping": {"max_grad_norm": 0.5},  # on
    "no advantage standardisation": {"norm_adv": False}, "PPO-M": BARE,
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
    """Other settings for one task, on the seeds of compare."""
    return [experiment("a2c", "HalfCheetah-v4", total_timesteps=1_000_000, num_steps=16,
                       learning_rate=1e-3, gae_lambda=0.95, log_std_init=-1.0)]


def ablation() -> list[Experiment]:
    """PPO and TRPO with and without the code-level optimisations, and time limits as ends."""
    found = []
    for env_id in ("Hopper-v4", "Walker2d-v4"):
        found += [experiment("ppo_continuous", env_id, **changes) for changes in ABLATIONS.values()]
        found += [experiment("ppo_continuous", env_id, variant="time_limits_terminate")]
        found += [experiment("trpo", env_id), experiment("trpo", env_id, **BARE)]
    return found


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


def sensitivity() -> list[Experiment]:
    """PPO on Hopper, 300,000 steps: learning rate × clip range × batch size, and λ."""
    grid = [job for cells in sensitivity_grid().values() for job in cells.values()]
    return grid + list(lambda_sweep().values())


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


def smoke() -> list[Experiment]:
    """A few seconds: does the machinery work?"""
    return [experiment("reinforce", "CartPole-v1", total_timesteps=4_000),
            experiment("a2c", "CartPole-v1", total_timesteps=4_096)]


SUITES = {suite.__name__: suite for suite in (compare, per_task, ablation, sensitivity,
                                              discount, health, actions, smoke)}


# --------------------------------------------------------------------------------------------------
# One run
# --------------------------------------------------------------------------------------------------
def execute(job: Experiment, seed: int, results: Path, runs: Path, extra: list[str]) -> None:
    """Train, then thin its log into results/. RuntimeError if it did not get to its end."""
    sys.path.insert(0, str(ROOT))  # on a cluster this function arrives without the lines above
    run_dir = runs / f"{job.name}__seed{seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    script = [str(ROOT / f"{job.script}.py")]
    if job.variant:
        script = [str(ROOT / "benchmarks/variants.py"), job.script, job.variant]
    command = [sys.executable, *script, "--env-id", job.env_id, "--seed", str(seed), "--run-dir",
               str(run_dir), *job.flags.split(), *extra]
    with (run_dir / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    newest = max(run_dir.glob("*/args.json"), key=os.path.getmtime, default=run_dir / "none").parent
    if code or not (newest / "evaluation.json").exists():
        raise RuntimeError(f"{run_dir.name}: exit code {code}, see {run_dir / 'log.txt'}")
    thin(newest, results / f"{job.name}__seed{seed}.csv", job)


def thin(run_dir: Path, path: Path, job: Experiment) -> None:
    """At most 200 rows of progress.csv, the last among them, under a line of JSON with the rest."""
    args = json.loads((run_dir / "args.json").read_text())
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    header, *rows = csv.reader((run_dir / "progress.csv").open())
    rows = rows[::-1][::-(-len(rows) // 199)][::-1]  # every n-th, counted from the last
    facts = {k: args[k] for k in ("device", "python", "torch", "gymnasium", "mujoco") if k in args}
    settings = {f.name: args[f.name]
                for f in dataclasses.fields(importlib.import_module(job.script).Args)
                if f.name not in NOT_SETTINGS}
    about = {**job._asdict(), "seed": args["seed"], **facts, "settings": settings,
             "evaluation": [round(r, 1) for r in evaluation["returns"]]}
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as file:
        file.write("# " + json.dumps(about) + "\n")
        csv.writer(file).writerows([header] + [[shorten(x) for x in row] for row in rows])
    partial.rename(path)


def shorten(cell: str) -> str:
    return f"{float(cell):.5g}" if "." in cell else cell


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
    results: Path = ROOT / "benchmarks/results"  # where the CSVs are
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
    results, runs = options.results.resolve(), options.runs.resolve()
    wanted = [(job, seed) for seed in options.seeds
              for job in dict.fromkeys(SUITES[options.suite]())
              if all(part in job.name for part in options.only)]
    missing = [(job, seed) for job, seed in wanted
               if not is_done(results / f"{job.name}__seed{seed}.csv", job)]
    if options.dry_run:
        print(*(f"{job.name}__seed{seed}" for job, seed in missing), sep="\n")
    print(f"{options.suite}: {len(wanted)} runs, {len(wanted) - len(missing)} of them done")
    if options.dry_run or not missing:
        return
    results.mkdir(parents=True, exist_ok=True)
    extra = ["--compile"] * options.compile + ["--no-cuda"] * (not options.cuda)
    executor, failed = executor_for(options), 0
    futures = [executor.submit(execute, job, seed, results, runs, extra) for job, seed in missing]
    try:
        with tqdm(total=len(futures), unit="run") as bar:
            while futures:
                time.sleep(0.5)
                for future in [future for future in futures if future.done()]:
                    futures.remove(future)
                    bar.update()
                    if error := future.exception():
                        failed += 1
                        bar.write(f"failed: {error}")
    except KeyboardInterrupt:  # the runs under way have got it, too, and stop by themselves
        for future in futures:
            future.cancel()
        print("\nstopped; the same command goes on")
        sys.exit(130)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
