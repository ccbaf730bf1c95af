"""Steps per second of our scripts against Stable-Baselines3, and where the time goes.

One race per script and shape (environments × steps of a rollout): the same environment, network
sizes, rollout, epochs and minibatches on both sides; one torch thread; on the CPU. Ours also
normalises observations and rewards, SB3 here does not; both sides log. A machine's speed drifts, so
the contestants take turns: one round runs each once, in its own process, and only medians and
ratios over the rounds are to be trusted.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                      # prints the tables, writes results/speed.csv
    python benchmarks/speed.py --races ppo-1x2048 --rounds 3
"""
import csv
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
CONTESTANTS = ("sb3", "eager", "compile")
STEPS = 12_288  # environment steps per measurement, after as much again, or one rollout, to warm up
PPO = ({"update_epochs": 10, "num_minibatches": 32}, {"n_epochs": 10})
TRPO = ({"critic_epochs": 10, "num_minibatches": 16, "cg_iters": 15},
        {"n_critic_updates": 10, "cg_max_steps": 15})
A2C = ({"gae_lambda": 1.0, "norm_adv": False}, {})
RACES = {  # name: script, environment, N, T, (our flags, SB3's)
    "ppo-1x2048": ("ppo_continuous", "HalfCheetah-v4", 1, 2048, PPO),
    "ppo-16x128": ("ppo_continuous", "HalfCheetah-v4", 16, 128, PPO),
    "trpo-1x2048": ("trpo", "HalfCheetah-v4", 1, 2048, TRPO),
    "a2c-8x5": ("a2c", "HalfCheetah-v4", 8, 5, A2C),
    "a2c-8x5-cartpole": ("a2c", "CartPole-v1", 8, 5, A2C),
}


@dataclass
class Options:
    races: tuple[str, ...] = tuple(RACES)  # which of them to run
    rounds: int = 5  # how often each contestant runs, in turn
    output: Path = ROOT / "benchmarks/results/speed.csv"
    worker: str = ""  # used by the script itself: the contestant to measure in this process


def measure_sb3(script: str, env_id: str, num_envs: int, num_steps: int, settings: tuple
                ) -> dict[str, float]:
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    ours, theirs = settings
    algorithm = {"ppo_continuous": stable_baselines3.PPO, "trpo": sb3_contrib.TRPO,
                 "a2c": stable_baselines3.A2C}[script]
    if "num_minibatches" in ours:
        theirs = theirs | {"batch_size": num_envs * num_steps // ours["num_minibatches"]}
    envs = make_vec_env(env_id, n_envs=num_envs, seed=1)
    model = algorithm("MlpPolicy", envs, n_steps=num_steps, device="cpu", verbose=0,
                      policy_kwargs={"net_arch": [64, 64]}, **theirs)
    model.learn(max(2048, num_envs * num_steps))
    began = time.perf_counter()
    model.learn(STEPS)
    return {"seconds": time.perf_counter() - began}


def measure_ours(script: str, env_id: str, num_envs: int, num_steps: int, settings: tuple,
                 compile: bool) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    ours = importlib.import_module(script)

    args = ours.Args(env_id=env_id, num_envs=num_envs, num_steps=num_steps, compile=compile,
                     cuda=False, **settings[0])
    ours.start(args)
    envs = ours.make_envs(args)
    agent = ours.Agent(envs, args)
    optimizer = ours.make_optimizer(agent, args)
    obs, _ = envs.reset(seed=1)
    seconds = {"seconds": 0.0, "simulator": 0.0, "acting": 0.0, "learning": 0.0}
    step_envs, simulated = envs.step, [0.0]
    progress = ours.Progress()
    logger = ours.Logger(args, Path(tempfile.mkdtemp()), progress)

    def timed_step(actions):
        began = time.perf_counter()
        result = step_envs(actions)
        simulated[0] += time.perf_counter() - began
        return result

    envs.step = timed_step
    warm_up = max(1, 2048 // args.batch_size)  # compiles, too
    for iteration in range(warm_up + STEPS // args.batch_size):
        simulated[0], began = 0.0, time.perf_counter()
        rollout, obs = ours.collect_rollout(agent, envs, obs, args)
        collected = time.perf_counter()
        ours.check_finite(0, rollout._asdict())
        metrics = ours.update(agent, optimizer, rollout, args)
        ours.check_finite(0, metrics)
        progress.advance(rollout, 1.0)
        logger.log(progress, rollout, metrics | {"learning_rate": args.learning_rate})
        ended = time.perf_counter()
        if iteration >= warm_up:
            seconds["seconds"] += ended - began
            seconds["simulator"] += simulated[0]
            seconds["acting"] += collected - began - simulated[0]
            seconds["learning"] += ended - collected
    return seconds


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
            x, w, g = (torch.randn(s) for s in ((minibatch, inputs), (inputs, out), (minibatch, out)))
            products += [(x, w), (x.T, g)] + ([(g, w.T)] if inputs == 64 else [])
    result = [torch.empty(a.shape[0], b.shape[1]) for a, b in products]
    began = time.perf_counter()
    for _ in range(STEPS // minibatch * settings[0]["update_epochs"]):
        for (a, b), out in zip(products, result):
            torch.mm(a, b, out=out)
    arithmetic = time.perf_counter() - began
    return {"seconds": simulator + arithmetic, "simulator": simulator, "acting": 0.0,
            "learning": arithmetic}


def work(options: Options) -> None:
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    race = RACES[options.races[0]]
    seconds = {"sb3": lambda: measure_sb3(*race), "floor": lambda: measure_floor(*race),
               "eager": lambda: measure_ours(*race, compile=False),
               "compile": lambda: measure_ours(*race, compile=True)}[options.worker]()
    print(json.dumps({"steps_per_second": STEPS / seconds.pop("seconds"),
                      **{name: 1e6 * value / STEPS for name, value in seconds.items()}}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__.splitlines()[0])
    if options.worker:
        work(options)
        return
    columns = ("race", "round", "contestant", "steps_per_second", "simulator", "acting", "learning")
    rows = []
    for race in options.races:
        contestants = CONTESTANTS + ("floor",) * race.startswith("ppo")
        for number in range(options.rounds):
            for name in contestants:
                command = [sys.executable, __file__, "--worker", name, "--races", race]
                out = subprocess.run(command, capture_output=True, text=True)
                if out.returncode:
                    sys.exit(f"{' '.join(command)} failed:\n{out.stderr}")
                rows.append({"race": race, "round": number, "contestant": name,
                             **json.loads(out.stdout.splitlines()[-1])})
                print(".", end="", flush=True)
        print()
        table(race, [row for row in rows if row["race"] == race])
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({k: round(v, 1) if isinstance(v, float) else v
                              for k, v in row.items()} for row in rows)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; "
          f"raw numbers in {options.output}")


def table(race: str, rows: list[dict]) -> None:
    """Medians over the rounds; the ratio is the median of the rounds' ratios."""
    baseline = {row["round"]: row["steps_per_second"] for row in rows if row["contestant"] == "sb3"}
    print(f"\n{race}: contestant | steps/s | ratio to SB3 (min–max) | µs per step: simulator, "
          "acting, learning")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == name]
        ratios = [row["steps_per_second"] / baseline[row["round"]] for row in mine]
        parts = [f"{statistics.median(r[part] for r in mine):.0f}" if part in mine[0] else "–"
                 for part in ("simulator", "acting", "learning")]
        print(f"{name:10s} | {statistics.median(r['steps_per_second'] for r in mine):7,.0f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | "
              + ", ".join(parts))


if __name__ == "__main__":
    main()
