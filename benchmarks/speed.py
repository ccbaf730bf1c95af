"""Steps per second of our scripts against Stable-Baselines3, and where the time goes.

One race per script and shape (environments × steps of a rollout): the same environment, network
sizes, rollout, epochs and minibatches on both sides; one thread; on the CPU. Ours is the script's
own train(): it normalises observations and rewards and writes its log; SB3 does the former as
"sb3-normalised" (VecNormalize), neither as "sb3". The optimiser and its settings, which cost next
to nothing to change, are each side's own. A machine's speed drifts, so the contestants take turns:
one round runs each once, in its own process, and only medians and ratios over the rounds are to be
trusted.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                      # prints the tables, writes results/speed.csv
    python benchmarks/speed.py --races ppo-1x2048 --rounds 3
    python benchmarks/speed.py --races ppo-1x2048 --peer "python cleanrl/ppo_continuous_action.py
        --env-id HalfCheetah-v4 --num-envs 1 --num-steps 2048 --total-timesteps 20480 --no-cuda"
    python -m venv sbx && sbx/bin/pip install sbx-rl "gymnasium[mujoco]"
    python benchmarks/speed.py --sbx sbx/bin/python

"cuda" takes part where there is a GPU. SBX, PPO in JAX by the authors of SB3, takes part in PPO's
races where --sbx names a Python that has it; like "sb3" it normalises and logs nothing. A peer is
any command that prints "SPS: <number>", as CleanRL does; its last one counts. Races that do not run
keep their rows in the CSV.

One thread: torch.set_num_threads(1) and OMP_NUM_THREADS=1 for all, and for SBX, whose compiler XLA
has threads of its own, XLA_FLAGS as in ONE_THREAD. It then takes one core at most (seen: 0.97 to
0.99 CPU seconds per second).
"""
import csv
import importlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
CONTESTANTS = ("sb3", "sb3-normalised", "eager", "compile", "cuda")
TITLES = {"sb3": "SB3", "sb3-normalised": "SB3, VecNormalize", "sbx": "SBX", "eager": "ours",
          "compile": "ours, `--compile`", "async": "ours, in processes",  # in older CSVs
          "cuda": "ours, GPU", "floor": "simulator and products alone"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false "
              "intra_op_parallelism_threads=1"}
COLUMNS = ("race", "round", "contestant", "steps_per_second", "simulator", "acting", "learning",
           "memory")
STEPS = 12_288  # environment steps per measurement, after a warm-up
WARM_UP = 2_048  # steps, or one rollout if that is more; SBX, which compiles at many places: STEPS
PPO = ({"update_epochs": 10, "num_minibatches": 32, "max_grad_norm": 0.5}, {"n_epochs": 10})
TRPO = ({"critic_epochs": 10, "num_minibatches": 16, "cg_iters": 15},
        {"n_critic_updates": 10, "cg_max_steps": 15})
A2C = ({"gae_lambda": 1.0, "norm_adv": False, "max_grad_norm": 0.5}, {})
RACES = {  # name: script, environment, N, T, (our flags, SB3's)
    "ppo-1x2048": ("ppo_continuous", "HalfCheetah-v4", 1, 2048, PPO),
    "ppo-4x512": ("ppo_continuous", "HalfCheetah-v4", 4, 512, PPO),
    "ppo-16x128": ("ppo_continuous", "HalfCheetah-v4", 16, 128, PPO),
    "ppo-64x32": ("ppo_continuous", "HalfCheetah-v4", 64, 32, PPO),
    "trpo-1x2048": ("trpo", "HalfCheetah-v4", 1, 2048, TRPO),
    "a2c-8x5": ("a2c", "HalfCheetah-v4", 8, 5, A2C),
    "a2c-8x5-cartpole": ("a2c", "CartPole-v1", 8, 5, A2C),
}


@dataclass
class Options:
    races: tuple[Literal[tuple(RACES)], ...] = tuple(RACES)  # which of them to run
    rounds: int = 5  # how often each contestant runs, in turn
    contestants: tuple[Literal[CONTESTANTS], ...] = CONTESTANTS  # which of them run
    sbx: str = ""  # the Python of an environment that has SBX; it joins PPO's races
    peer: str = ""  # a command that prints "SPS: <number>"; it joins every race
    output: Path = ROOT / "benchmarks/results/speed.csv"


def measure_sb3(script: str, env_id: str, num_envs: int, num_steps: int, settings: tuple,
                library: str = "sb3") -> dict[str, float]:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    ours, theirs = settings
    module, name = {"ppo_continuous": ("stable_baselines3", "PPO"), "trpo": ("sb3_contrib", "TRPO"),
                    "a2c": ("stable_baselines3", "A2C")}[script]
    algorithm = getattr(importlib.import_module("sbx" if library == "sbx" else module), name)
    if "num_minibatches" in ours:
        theirs = theirs | {"batch_size": num_envs * num_steps // ours["num_minibatches"]}
    envs = make_vec_env(env_id, n_envs=num_envs, seed=1)
    envs = VecNormalize(envs) if library == "sb3-normalised" else envs
    model = algorithm("MlpPolicy", envs, n_steps=num_steps, device="cpu", verbose=0,
                      policy_kwargs={"net_arch": [64, 64]}, **theirs)
    model.learn(STEPS if library == "sbx" else max(WARM_UP, num_envs * num_steps))
    began = time.perf_counter()
    model.learn(STEPS)
    return {"steps": model.num_timesteps, "seconds": time.perf_counter() - began}


def measure_ours(script: str, env_id: str, num_envs: int, num_steps: int, settings: tuple,
                 compile: bool = False, cuda: bool = False) -> dict[str, float]:
    """The first iterations of the script's train(), as it is, with a clock around two functions and
    one after each iteration. It ends as by Ctrl-C."""
    sys.path.insert(0, str(ROOT))
    ours = importlib.import_module(script)
    args = ours.Args(env_id=env_id, num_envs=num_envs, num_steps=num_steps, compile=compile,
                     cuda=cuda, total_timesteps=1_000_000, eval_episodes=0,
                     run_dir=tempfile.mkdtemp(), **settings[0])
    spent, marks, log = {"simulator": 0.0, "rollouts": 0.0}, [], ours.Run.log

    def clocked(function: Callable, name: str) -> Callable:
        def call(*arguments):
            began = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - began
            return result
        return call

    def log_and_mark(run, *arguments):  # the last thing in an iteration
        log(run, *arguments)
        now = time.perf_counter()
        if run.step >= WARM_UP:  # compiles, too
            marks.append((run.step, now, *spent.values()))
            run.stopped |= run.step >= marks[0][0] + STEPS

    ours.Envs.step = clocked(ours.Envs.step, "simulator")
    ours.collect_rollout = clocked(ours.collect_rollout, "rollouts")
    ours.Run.log = log_and_mark
    ours.train(args)
    steps, seconds, simulator, rollouts = (y - x for x, y in zip(marks[0], marks[-1]))
    return {"steps": steps, "seconds": seconds, "simulator": simulator,
            "acting": rollouts - simulator, "learning": seconds - rollouts}


def measure_floor(script: str, env_id: str, num_envs: int, num_steps: int, settings: tuple
                  ) -> dict[str, float]:
    """The simulator alone, stepped with random actions, and the matrix products of PPO's update."""
    import gymnasium as gym
    import torch

    env = gym.make(env_id).unwrapped
    env.reset(seed=1)
    actions = [env.action_space.sample() for _ in range(STEPS)]
    began = time.perf_counter()
    for t, action in enumerate(actions):
        env.step(action)
        if t % 1000 == 999:
            env.reset()
    simulator = time.perf_counter() - began
    sizes = (env.observation_space.shape[0], 64, 64)
    minibatch, products = num_envs * num_steps // settings[0]["num_minibatches"], []
    for outputs in (env.action_space.shape[0], 1):  # actor and critic
        for inputs, out in zip(sizes, (64, 64, outputs)):
            x, w, g = map(torch.randn, (minibatch, inputs, minibatch), (inputs, out, out))
            products += [(x, w), (x.T, g)] + ([(g, w.T)] if inputs == 64 else [])
    result = [torch.empty(a.shape[0], b.shape[1]) for a, b in products]
    began = time.perf_counter()
    for _ in range(STEPS // minibatch * settings[0]["update_epochs"]):
        for (a, b), out in zip(products, result):
            torch.mm(a, b, out=out)
    arithmetic = time.perf_counter() - began
    return {"steps": STEPS, "seconds": simulator + arithmetic, "simulator": simulator,
            "acting": 0.0, "learning": arithmetic}


def work(name: str, race: str) -> None:
    """Measure a contestant in this process; prints what measure() returns."""
    import resource  # not on Windows, where report.py needs the rest of this file

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if name.startswith("sb"):
        found = measure_sb3(*RACES[race], library=name)
    elif name == "floor":
        found = measure_floor(*RACES[race])
    else:
        found = measure_ours(*RACES[race], compile=name == "compile", cuda=name == "cuda")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux: KiB; no children
    steps = found.pop("steps")
    print(json.dumps({"steps_per_second": steps / found.pop("seconds"), "memory": memory,
                      **{name: 1e6 * value / steps for name, value in found.items()}}))


def measure(name: str, race: str, options: Options) -> dict[str, float]:
    """In a process of its own; what a row of the CSV says."""
    python = options.sbx if name == "sbx" else sys.executable
    command = [python, "-c", f"import speed; speed.work({name!r}, {race!r})"]
    path = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": path}
    if name == "peer":
        command, environment = shlex.split(options.peer), os.environ | ONE_THREAD
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = out.stdout.splitlines()
    if name == "peer":
        lines = re.findall(r"SPS:?\s*([0-9.]+)", out.stdout)
    if out.returncode or not lines or "--compile: it failed" in out.stdout:  # and went on without
        sys.exit(f"{shlex.join(command)} failed:\n{out.stdout}\n{out.stderr}")
    return {"steps_per_second": float(lines[-1])} if name == "peer" else json.loads(lines[-1])


def main() -> None:
    import torch
    import tyro  # neither of them at the top: SBX's environment has no tyro

    options = tyro.cli(Options, description=__doc__.splitlines()[0])
    rows, kept = [], []
    if options.output.exists():
        kept = [row for row in csv.DictReader(options.output.open())
                if row["race"] not in options.races]
    for race in options.races:
        ppo = race.startswith("ppo")
        contestants = [name for name in options.contestants
                       if name != "cuda" or torch.cuda.is_available()]
        contestants += ["sbx"] * (ppo and bool(options.sbx)) + ["floor"] * ppo
        contestants += ["peer"] * bool(options.peer)
        for number in range(options.rounds):
            for name in contestants:
                rows.append({"race": race, "round": number, "contestant": name,
                             **measure(name, race, options)})
                print(".", end="", flush=True)
        print()
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows({k: round(v, 1) if isinstance(v, float) else v
                              for k, v in row.items()} for row in kept + rows)
        print(table({race: read(options.output)[race]}))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; "
          f"raw numbers in {options.output}")


def read(path: Path) -> dict[str, dict[str, list[dict]]]:
    """Race → contestant → its rows, one per round; numbers as floats, None if a cell is empty."""
    races = {}
    for row in csv.DictReader(path.open()):
        numbers = {name: float(row[name]) if row[name] else None for name in COLUMNS[3:]}
        rows = races.setdefault(row["race"], {}).setdefault(row["contestant"], [])
        rows.append({"round": row["round"], **numbers})
    return races


def median(rows: list[dict], column: str) -> float | None:
    there = [row[column] for row in rows if row[column] is not None]
    return statistics.median(there) if there else None


def ratios(rows: list[dict], baseline: list[dict]) -> str:
    """Median of the rounds' ratios, and the smallest and the largest."""
    theirs = {row["round"]: row["steps_per_second"] for row in baseline}
    found = [row["steps_per_second"] / theirs[row["round"]] for row in rows]
    return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


def title_of(race: str, name: str) -> str:
    """What tables and figures call a contestant; TRPO of SB3 is sb3-contrib's."""
    title = TITLES.get(name, name)
    return title.replace("SB3", "sb3-contrib") if RACES[race][0] == "trpo" else title


def table(races: dict[str, dict[str, list[dict]]]) -> str:
    """Medians over the rounds, and the ratios to a race's first contestant."""
    lines = ["| script, N × T | contestant | steps/s | ratio to the first (min–max) | "
             "µs per step: simulator, acting, learning | MiB |",
             "|---|---|---:|---|---|---:|"]
    for race in (race for race in RACES if race in races):
        script, env_id, num_envs, num_steps, _ = RACES[race]
        title = f"`{script}.py`, {num_envs} × {num_steps}" + f", {env_id}" * (script == "a2c")
        first = next(iter(races[race]))
        for name, rows in races[race].items():
            ratio = ratios(rows, races[race][first]) if name != first else ""
            parts = [f"{value:,.0f}" if (value := median(rows, part)) is not None else ""
                     for part in COLUMNS[4:]]
            lines.append(f"| {title} | {title_of(race, name)} | "
                         f"{median(rows, 'steps_per_second'):,.0f} | {ratio} | "
                         f"{', '.join(filter(None, parts[:3]))} | {parts[3]} |")
            title = ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
