"""Steps per second of ppo_continuous.py against Stable-Baselines3's PPO, and where the time goes.

Same environment, network sizes, rollout, 10 epochs of 32 minibatches; one torch thread; on the CPU.
Ours also normalises observations and rewards, SB3 here does not; both sides log. A machine's speed
drifts, so the contestants take turns: one round runs each once, in its own process, and only medians
and ratios over the rounds are to be trusted.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                      # prints the table, writes results/speed.csv
    python benchmarks/speed.py --shapes 1x2048 --rounds 3
"""
import csv
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


@dataclass
class Options:
    env_id: str = "HalfCheetah-v4"  # a continuous-control environment
    shapes: tuple[str, ...] = ("1x2048", "16x128")  # environments x steps of a rollout
    rounds: int = 5  # how often each contestant runs, in turn
    iterations: int = 6  # rollouts and updates per measurement, after one to warm up
    output: Path = ROOT / "benchmarks/results/speed.csv"
    worker: str = ""  # used by the script itself: the contestant to measure in this process


def measure_sb3(env_id: str, num_envs: int, num_steps: int, iterations: int) -> dict[str, float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    batch = num_envs * num_steps
    envs = make_vec_env(env_id, n_envs=num_envs, seed=1)
    model = PPO("MlpPolicy", envs, learning_rate=3e-4, n_steps=num_steps, batch_size=batch // 32,
                n_epochs=10, policy_kwargs={"net_arch": [64, 64]}, device="cpu", verbose=0)
    model.learn(batch)
    began = time.perf_counter()
    model.learn(batch * iterations)
    return {"seconds": time.perf_counter() - began}


def measure_ours(env_id: str, num_envs: int, num_steps: int, iterations: int, compile: bool
                 ) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    import ppo_continuous as ppo

    args = ppo.Args(env_id=env_id, num_envs=num_envs, num_steps=num_steps, num_minibatches=32,
                    update_epochs=10, compile=compile, cuda=False)
    ppo.start(args)
    envs = ppo.make_envs(args)
    agent = ppo.Agent(envs, args)
    optimizer = ppo.make_optimizer(agent, args)
    obs, _ = envs.reset(seed=1)
    seconds = {"seconds": 0.0, "simulator": 0.0, "acting": 0.0, "learning": 0.0}
    step_envs, simulated = envs.step, [0.0]
    progress = ppo.Progress()
    logger = ppo.Logger(args, Path(tempfile.mkdtemp()), progress)

    def timed_step(actions):
        began = time.perf_counter()
        result = step_envs(actions)
        simulated[0] += time.perf_counter() - began
        return result

    envs.step = timed_step
    for iteration in range(iterations + 1):
        simulated[0], began = 0.0, time.perf_counter()
        rollout, obs = ppo.collect_rollout(agent, envs, obs, args)
        collected = time.perf_counter()
        ppo.check_finite(0, obs=rollout.obs, next_obs=rollout.next_obs, reward=rollout.rewards)
        metrics = ppo.update(agent, optimizer, rollout, args)
        progress.advance(rollout, 1.0)
        logger.log(progress, rollout, metrics | {"learning_rate": args.learning_rate})
        ended = time.perf_counter()
        if iteration:  # the first one warms up, and compiles
            seconds["seconds"] += ended - began
            seconds["simulator"] += simulated[0]
            seconds["acting"] += collected - began - simulated[0]
            seconds["learning"] += ended - collected
    return seconds


def measure_floor(env_id: str, num_envs: int, num_steps: int, iterations: int) -> dict[str, float]:
    """The simulator alone, stepped with random actions, and the update's matrix products alone."""
    import gymnasium as gym
    import torch

    env = gym.make(env_id).unwrapped
    env.reset(seed=1)
    steps = num_envs * num_steps
    actions = [env.action_space.sample() for _ in range(steps)]
    began = time.perf_counter()
    for t, action in enumerate(actions):
        env.step(action)
        if t % 1000 == 999:
            env.reset()
    simulator = time.perf_counter() - began
    sizes = (env.observation_space.shape[0], 64, 64)
    minibatch, products = steps // 32, []
    for outputs in (env.action_space.shape[0], 1):  # actor and critic
        for inputs, out in zip(sizes, (64, 64, outputs)):
            x, w, g = (torch.randn(s) for s in ((minibatch, inputs), (inputs, out), (minibatch, out)))
            products += [(x, w), (x.T, g)] + ([(g, w.T)] if inputs == 64 else [])
    result = [torch.empty(a.shape[0], b.shape[1]) for a, b in products]
    began = time.perf_counter()
    for _ in range(320):
        for (a, b), out in zip(products, result):
            torch.mm(a, b, out=out)
    arithmetic = time.perf_counter() - began
    return {"seconds": (simulator + arithmetic) * iterations, "simulator": simulator * iterations,
            "acting": 0.0, "learning": arithmetic * iterations}


def work(options: Options) -> None:
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    num_envs, num_steps = map(int, options.shapes[0].split("x"))
    shape = (options.env_id, num_envs, num_steps, options.iterations)
    seconds = {"sb3": lambda: measure_sb3(*shape), "floor": lambda: measure_floor(*shape),
               "eager": lambda: measure_ours(*shape, compile=False),
               "compile": lambda: measure_ours(*shape, compile=True)}[options.worker]()
    steps = num_envs * num_steps * options.iterations
    print(json.dumps({"steps_per_second": steps / seconds.pop("seconds"),
                      **{name: 1e6 * value / steps for name, value in seconds.items()}}))


def main() -> None:
    options = tyro.cli(Options, description=__doc__.splitlines()[0])
    if options.worker:
        work(options)
        return
    rows = []
    for shape in options.shapes:
        for number in range(options.rounds):
            for name in (*CONTESTANTS, "floor"):
                command = [sys.executable, __file__, "--worker", name, "--shapes", shape, "--env-id",
                           options.env_id, "--iterations", str(options.iterations)]
                out = subprocess.run(command, capture_output=True, text=True)
                if out.returncode:
                    sys.exit(f"{' '.join(command)} failed:\n{out.stderr}")
                rows.append({"shape": shape, "round": number, "contestant": name,
                             **json.loads(out.stdout.splitlines()[-1])})
                print(".", end="", flush=True)
        print()
        table(shape, [row for row in rows if row["shape"] == shape])
    with options.output.open("w", newline="") as file:
        columns = ("shape", "round", "contestant", "steps_per_second", "simulator", "acting", "learning")
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}
                         for row in rows)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; "
          f"raw numbers in {options.output}")


def table(shape: str, rows: list[dict]) -> None:
    """Medians over the rounds; the ratio is the median of the rounds' ratios."""
    baseline = {row["round"]: row["steps_per_second"] for row in rows if row["contestant"] == "sb3"}
    print(f"\n{shape}: contestant | steps/s | ratio to SB3 (min–max) | µs per step: simulator, "
          "acting, learning")
    for name in (*CONTESTANTS, "floor"):
        mine = [row for row in rows if row["contestant"] == name]
        ratios = [row["steps_per_second"] / baseline[row["round"]] for row in mine]
        parts = [f"{statistics.median(r[part] for r in mine):.0f}" if part in mine[0] else "–"
                 for part in ("simulator", "acting", "learning")]
        print(f"{name:10s} | {statistics.median(r['steps_per_second'] for r in mine):7,.0f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | "
              + ", ".join(parts))


if __name__ == "__main__":
    main()
