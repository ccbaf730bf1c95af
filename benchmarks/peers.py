"""Train with another library, with that library's own settings, and write what our scripts write.

    pip install -r benchmarks/requirements-peers.txt
    python benchmarks/run.py peers                  # all of them, on all tasks
    python benchmarks/peers.py tianshou_ppo --env-id Hopper-v4 --seed 1
    python benchmarks/peers.py random --env-id Hopper-v4 --total-timesteps 100000

sb3_ppo, sb3_a2c and sb3_trpo (of sb3-contrib) are trained by RL Zoo's own ExperimentManager, with
the settings that RL Zoo publishes for the task. tianshou_ppo and tianshou_reinforce have the
settings of Tianshou's published MuJoCo benchmark of 2021, 64 environments among them. (So the last
100 episodes, where they have 1,000 steps, are from steps 832,000 to 960,000: no later ones end.)
cleanrl_ppo is the script of a checkout that you name, run by a Python that has what it requires:

    CLEANRL="cleanrl/.venv/bin/python cleanrl/cleanrl/ppo_continuous_action.py" \\
        python benchmarks/peers.py cleanrl_ppo --env-id Hopper-v4

Where settings have the learning rate fall, it falls to 0 over the run's own length. progress.csv
has the mean raw return of the last 100 training episodes, as sampled; evaluation.json has ten
episodes with deterministic actions and frozen statistics (CleanRL: none; random: the last ten). All
runs on one core.
"""
import argparse
import csv
import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro

NAMES = {"sb3_ppo": "SB3's PPO", "sb3_a2c": "SB3's A2C", "sb3_trpo": "sb3-contrib's TRPO",
         "tianshou_ppo": "Tianshou's PPO", "tianshou_reinforce": "Tianshou's REINFORCE",
         "cleanrl_ppo": "CleanRL's PPO", "random": "actions drawn uniformly"}


@dataclass
class Args:
    peer: Annotated[Literal[tuple(NAMES)], tyro.conf.Positional]  # whose algorithm
    env_id: str = "HalfCheetah-v4"
    total_timesteps: int = 1_000_000
    seed: int = 1
    eval_episodes: int = 10  # deterministic episodes after training
    run_dir: Path = Path("runs")  # a folder is made in it


class Log:
    """progress.csv: a row at each call of row, once an episode has ended."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "progress.csv").open("w", newline="", buffering=1)
        self.rows = csv.writer(self.file)
        self.rows.writerow(["global_step", "seconds", "episodes", "episodic_length", "return_100"])
        self.began, self.steps, self.episodes = time.perf_counter(), 0, 0
        self.returns, self.lengths = deque(maxlen=100), deque(maxlen=100)

    def episode(self, value: float, length: float) -> None:
        self.episodes += 1
        self.returns.append(float(value))
        self.lengths.append(length)

    def row(self, global_step: int) -> None:
        if self.returns:
            self.rows.writerow([global_step, round(time.perf_counter() - self.began, 1),
                                self.episodes, round(np.mean(self.lengths), 3),
                                round(np.mean(self.returns), 3)])


# --------------------------------------------------------------------------------------------------
# Stable-Baselines3 and sb3-contrib, by RL Zoo
# --------------------------------------------------------------------------------------------------
def sb3(args: Args, folder: Path, log: Log) -> tuple[dict, list[float]]:
    """Train by RL Zoo's ExperimentManager. The settings it used, and the evaluation's returns."""
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    class Episodes(BaseCallback):
        rows_due = 0

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:  # Monitor stands below the normalisation: raw returns
                    log.episode(info["episode"]["r"], info["episode"]["l"])
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps >= self.rows_due:  # A2C's rollouts have five steps
                log.row(self.num_timesteps)
                self.rows_due += 2_000

    manager = ExperimentManager(
        argparse.Namespace(), args.peer.removeprefix("sb3_"), args.env_id, str(folder / "zoo"),
        n_timesteps=args.total_timesteps, eval_freq=-1, seed=args.seed, verbose=0, log_interval=-2,
        device="cpu")
    model, settings = manager.setup_experiment()
    manager.callbacks.append(Episodes())
    manager.learn(model)
    if model.num_timesteps < args.total_timesteps:  # Ctrl-C, which learn swallows
        sys.exit(130)
    evaluation = manager.create_envs(1, eval_env=True, no_log=True)
    evaluation.seed(args.seed + 10_000)
    sync_envs_normalization(model.env, evaluation)
    returns, _ = evaluate_policy(model, evaluation, args.eval_episodes, deterministic=True,
                                 return_episode_rewards=True)
    return dict(settings) | versions("rl_zoo3", "stable_baselines3", "sb3_contrib"), returns


# --------------------------------------------------------------------------------------------------
# Tianshou
# --------------------------------------------------------------------------------------------------
TIANSHOU = {  # of its MuJoCo benchmark of 2021: the training's settings, the algorithm's
    "tianshou_ppo": (
        {"num_envs": 64, "lr": 3e-4, "repetitions": 10, "batch_size": 64, "bound_method": "clip"},
        {"gamma": 0.99, "gae_lambda": 0.95, "max_grad_norm": 0.5, "vf_coef": 0.25, "ent_coef": 0.0,
         "return_scaling": True, "eps_clip": 0.2, "value_clip": False,
         "advantage_normalization": False, "recompute_advantage": True}),
    "tianshou_reinforce": (
        {"num_envs": 64, "lr": 1e-3, "repetitions": 1, "batch_size": None, "bound_method": "tanh"},
        {"gamma": 0.99, "return_standardization": True}),
}
COLLECT = 2_048  # steps between updates


def tianshou(args: Args, folder: Path, log: Log) -> tuple[dict, list[float]]:
    """Train by Tianshou's trainer. The settings, and the evaluation's returns."""
    from tianshou.algorithm import PPO, Reinforce
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv, VectorEnvNormObs
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    class Recorder(Collector):
        steps = 0

        def collect(self, *positional, **named) -> CollectStats:
            stats = super().collect(*positional, **named)
            for value in stats.returns:  # its lens count only what came after the last update
                log.episode(value, math.nan)
            self.steps += stats.n_collected_steps
            log.row(self.steps)
            return stats

    training, hyperparameters = TIANSHOU[args.peer]
    envs, evaluation = (
        VectorEnvNormObs(DummyVectorEnv([lambda: gym.make(args.env_id)] * number),
                         update_obs_rms=learns)
        for number, learns in ((training["num_envs"], True), (args.eval_episodes, False)))
    envs.seed(args.seed)
    evaluation.seed(args.seed + 10_000)
    env = gym.make(args.env_id)

    def net() -> Net:
        return Net(state_shape=env.observation_space.shape, hidden_sizes=[64, 64],
                   activation=torch.nn.Tanh)

    actor = ContinuousActorProbabilistic(preprocess_net=net(), action_shape=env.action_space.shape,
                                         unbounded=True)
    critic = ContinuousCritic(preprocess_net=net())
    torch.nn.init.constant_(actor.sigma_param, -0.5)
    for layer in (*actor.modules(), *critic.modules()):
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.orthogonal_(layer.weight, gain=2 ** 0.5)
            torch.nn.init.zeros_(layer.bias)
    for layer in actor.mu.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 0.01
    policy = ProbabilisticActorPolicy(
        actor=actor, dist_fn=lambda found: Independent(Normal(*found), 1), action_scaling=True,
        action_bound_method=training["bound_method"], action_space=env.action_space)
    optimiser = AdamOptimizerFactory(lr=training["lr"])
    optimiser.with_lr_scheduler_factory(LRSchedulerFactoryLinear(
        max_epochs=1, epoch_num_steps=args.total_timesteps, collection_step_num_env_steps=COLLECT))
    if args.peer == "tianshou_ppo":
        algorithm = PPO(policy=policy, critic=critic, optim=optimiser, **hyperparameters)
    else:
        algorithm = Reinforce(policy=policy, optim=optimiser, **hyperparameters)
    recorder = Recorder(algorithm, envs, VectorReplayBuffer(4_096, training["num_envs"]),
                        exploration_noise=True)
    algorithm.run_training(OnPolicyTrainerParams(
        training_collector=recorder, test_collector=None, max_epochs=1,
        epoch_num_steps=args.total_timesteps, batch_size=training["batch_size"],
        update_step_num_repetitions=training["repetitions"], collection_step_num_env_steps=COLLECT,
        test_in_training=False, show_progress=False, verbose=False))
    policy.deterministic_eval = True
    evaluation.set_obs_rms(envs.get_obs_rms())
    found = Collector(algorithm, evaluation).collect(n_episode=args.eval_episodes,
                                                     reset_before_collect=True)
    return (training | hyperparameters | versions("tianshou"),
            [float(value) for value in found.returns])


# --------------------------------------------------------------------------------------------------
# CleanRL
# --------------------------------------------------------------------------------------------------
def cleanrl(args: Args, folder: Path, log: Log) -> tuple[dict, list[float]]:
    """Run $CLEANRL and read the returns that it prints. It has no deterministic evaluation."""
    named = os.environ.get("CLEANRL", "")
    command = [os.path.abspath(part) if Path(part).exists() else part
               for part in shlex.split(named)]
    scripts = [part for part in command if part.endswith(".py") and Path(part).exists()]
    if len(scripts) != 1 or command[0] in scripts:
        print(f"CLEANRL={named!r}: it has to name a Python and one script", file=sys.stderr)
        sys.exit(2)
    digest = hashlib.sha256(Path(scripts[0]).read_bytes()).hexdigest()
    packages = packages_of(command[:command.index(scripts[0])])
    command += ["--env-id", args.env_id, "--total-timesteps", str(args.total_timesteps),
                "--no-cuda"]
    flags = command[command.index(scripts[0]) + 1:]
    command += ["--seed", str(args.seed)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
    last = 0
    for line in process.stdout:
        if found := re.search(r"global_step=(\d+), episodic_return=\[?(-?[\d.]+)", line):
            step = int(found[1])
            log.episode(float(found[2]), step - last)
            last = step
            log.row(step)
    if process.wait() or not log.episodes:
        sys.exit(f"{shlex.join(command)}: exit code {process.returncode}, {log.episodes} episodes")
    return {"flags": shlex.join(flags), "sha256 of the script": digest} | packages, []


def packages_of(python: list[str]) -> dict[str, str]:
    """The version of another Python (3.8 or later), and those of torch, numpy, gymnasium and
    mujoco, as far as it has them."""
    listing = ("import importlib.metadata, json, platform\n"
               "print(json.dumps({**{found.metadata['Name']: found.version for found in\n"
               "                     importlib.metadata.distributions()},\n"
               "                  'python': platform.python_version()}))")
    installed = json.loads(subprocess.check_output([*python, "-c", listing], text=True))
    return {name: installed[name] for name in ("python", "torch", "numpy", "gymnasium", "mujoco")
            if name in installed}


# --------------------------------------------------------------------------------------------------
# Nobody
# --------------------------------------------------------------------------------------------------
def random(args: Args, folder: Path, log: Log) -> tuple[dict, list[float]]:
    """Draw actions uniformly, and learn nothing; the evaluation is the last episodes'."""
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(args.env_id))
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    for step in range(1, args.total_timesteps + 1):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            log.episode(info["episode"]["r"], info["episode"]["l"])
            env.reset()
        if step % 1_000 == 0 or step == args.total_timesteps:
            log.row(step)
    return {}, list(log.returns)[-args.eval_episodes:]


def versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def main() -> None:
    args = tyro.cli(Args, description=__doc__.splitlines()[0])
    torch.set_num_threads(1)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = args.run_dir / f"{args.env_id}__{args.peer}__{args.seed}__{stamp}"
    folder.mkdir(parents=True)
    library = args.peer.partition("_")[0]
    train = {"sb3": sb3, "tianshou": tianshou, "cleanrl": cleanrl, "random": random}[library]
    settings, returns = train(args, folder, Log(folder))
    facts = {"device": "cpu"}
    if args.peer != "cleanrl_ppo":  # it has a Python of its own
        facts |= {"python": platform.python_version()} | versions("torch", "gymnasium", "mujoco")
    settings |= {"total_timesteps": args.total_timesteps}
    args_json = asdict(args) | facts | {"run_dir": str(folder), "settings": settings}
    (folder / "args.json").write_text(json.dumps(args_json, default=str, indent=1))
    (folder / "evaluation.json").write_text(json.dumps({"returns": returns}))
    print(f"{args.peer}, {args.env_id}: evaluation {np.mean(returns) if returns else np.nan:,.1f}")


if __name__ == "__main__":
    main()
