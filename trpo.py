"""Trust region policy optimisation (TRPO): the whole algorithm in one file.

The idea: data sampled by π_old are to be trusted near π_old only. TRPO takes the step that gains
most among those with mean KL(π_old ‖ π) ≤ δ: it measures distance between policies, not parameters.

    repeat until the step budget is spent                                       (9. train)
        run π_old in N environments for T steps                                 (4. collect_rollout)
        estimate how much better than average each action was: Â, by GAE        (5. compute_gae)
        solve F x = g = ∇ mean[ρÂ], F the Fisher matrix                         (7. policy_update)
        step √(2δ / xᵀFx) x, shortened until KL ≤ δ and mean[ρÂ] grows          (7. line_search)
        fit V to the returns                                                    (7. critic_step)

What differs from ppo_continuous.py: PPO removes the reward for a large step and hopes; TRPO bounds
the step, by the natural gradient and a line search. Actor and critic learn apart. With
--no-line-search it is the natural policy gradient [NPG], with the step length that δ implies; with
--clip-vloss, the rest of "TRPO+" [IM].

[TRPO] Schulman et al. 2015, Trust Region Policy Optimization, arXiv 1502.05477
[NPG] Kakade 2001, A Natural Policy Gradient, NeurIPS 14
[PPO] Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347
[GAE] Schulman et al. 2016, High-Dimensional Continuous Control Using GAE, arXiv 1506.02438
[IM]  Engstrom et al. 2020, Implementation Matters in Deep Policy Gradients, arXiv 2005.12729
[ADAM] Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, arXiv 1412.6980

Run it: python trpo.py --env-id HalfCheetah-v4
"""
import contextlib
import copy
import csv
import dataclasses
import difflib
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


# ==================================================================================================
# 1. Hyperparameters    [specific]
# ==================================================================================================
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium environment
    seed: int = 1  # seed of networks, actions and environments
    total_timesteps: int = 1_000_000  # environment steps, all environments together
    num_envs: int = 8  # N, environments stepped in turn
    num_steps: int = 256  # T, steps per environment and iteration; the batch is B = T·N
    gamma: float = 0.993  # γ, discount factor
    gae_lambda: float = 0.95  # λ of GAE: 0 gives the TD error, 1 the Monte Carlo return − V(s)
    learning_rate: float = 1e-3  # step size of the optimiser
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    target_kl: float = 0.04  # δ, the KL that an update may reach; with --anneal-lr it falls, too
    cg_iters: int = 10  # iterations of the conjugate gradient method
    cg_damping: float = 0.1  # added to the diagonal of the Fisher matrix
    line_search: bool = True  # off: take the full step, the natural policy gradient
    backtrack_coef: float = 0.8  # each try of the line search shortens the step by this factor
    backtrack_iters: int = 10  # tries of the line search
    critic_epochs: int = 10  # passes of the critic over the batch
    num_minibatches: int = 32  # minibatches per pass; each holds M = B / this transitions
    clip_coef: float = 0.2  # ε, clipping range of PPO's ratio, and of V's change if --clip-vloss
    clip_vloss: bool = False  # clip the change of the value function too (not in the paper)
    norm_adv: bool = True  # standardise the batch's advantages (not in the paper)
    max_grad_norm: float = 0.5  # scale the gradient down to this norm; 0: leave it
    norm_obs: bool = True  # standardise observations by running statistics
    clip_obs: float = 10.0  # clip standardised observations to ± this
    norm_reward: bool = True  # divide rewards by the running std of the discounted return
    clip_reward: float = 10.0  # clip scaled rewards to ± this
    activation: Literal["tanh", "relu"] = "tanh"  # nonlinearity of the hidden layers
    ortho_init: bool = True  # orthogonal initial weights; off: PyTorch's default
    log_std_init: float = -1.0  # log σ of the Gaussian policy at the start

    cuda: bool = True  # use the GPU when there is one
    torch_deterministic: bool = True  # only deterministic PyTorch operations
    compile: bool = False  # torch.compile the gradient steps: starts slower, runs faster
    exp_name: str = Path(__file__).stem  # name of the experiment
    run_dir: str = "runs"  # where run directories are made
    track: bool = False  # log to Weights & Biases too
    wandb_project_name: str = "policy-gradients"  # W&B project
    wandb_entity: str | None = None  # W&B user or team
    resume: str | None = None  # go on with the run in this run directory
    evaluate: str | None = None  # evaluate the run in this run directory; no training
    eval_episodes: int = 10  # episodes of the evaluation after training; 0: none
    eval_deterministic: bool = True  # evaluate the policy's mode; off: sample as in training
    capture_video: bool = False  # film the evaluation episodes

    @property
    def batch_size(self) -> int:
        """B = T·N, environment steps per iteration."""
        return self.num_steps * self.num_envs

    @property
    def plan(self) -> str:
        """What the run says of itself at its start."""
        whole = self.total_timesteps // self.batch_size
        return (f"{whole:,} iterations × {self.batch_size:,} steps = "
                f"{whole * self.batch_size:,} of {self.total_timesteps:,} steps")


# ==================================================================================================
# 2. Environments    [shared: all five]
# ==================================================================================================
class UserError(Exception):
    """Something the user can mend: `main` prints it as one line and exits with code 2."""


class EpisodeInfoOnly(gym.Wrapper):
    """No info but "episode", at its end. A vector environment merges infos: that takes long, and
    fails where they do not fit together."""

    def reset(self, **kwargs) -> tuple[np.ndarray, dict]:
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: np.ndarray | int) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        info = {"episode": info["episode"]} if terminated or truncated else {}
        return obs, reward, terminated, truncated, info


def make_envs(args: Args, video_folder: Path | None = None) -> gym.vector.VectorEnv:
    """N copies of the environment; observations are float32 vectors, (N, O).

    SAME_STEP: the step that ends an episode already returns the next episode's first observation,
    and the true last one in infos["final_obs"]. (Gymnasium's default, NEXT_STEP, inserts a
    transition between episodes that never happened.) Raises UserError if there is no such
    environment, its simulator is missing or its observations are neither vectors nor Discrete.
    """

    def make_env() -> gym.Env:
        env = gym.make(args.env_id, **{"render_mode": "rgb_array"} if video_folder else {})
        space = env.observation_space
        if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete)) or len(space.shape) > 2:
            kind = "an image" if isinstance(space, gym.spaces.Box) else type(space).__name__
            raise UserError(f"--env-id {args.env_id}: its observation is {kind}; "
                            "only vectors (Box) and Discrete observations are supported")
        if video_folder:
            env = gym.wrappers.RecordVideo(env, str(video_folder),
                                           episode_trigger=lambda n: n < args.eval_episodes)
        env = gym.wrappers.RecordEpisodeStatistics(env)  # the raw return, in info["episode"]
        if len(space.shape) != 1:
            env = gym.wrappers.FlattenObservation(env)  # Discrete becomes one-hot
        space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        to_float32 = functools.partial(np.array, dtype=np.float32)  # copies: some reuse their array
        return EpisodeInfoOnly(gym.wrappers.TransformObservation(env, to_float32, space))

    try:
        if "mujoco" in str(gym.registry.get(args.env_id)) and importlib.util.find_spec("mujoco"):
            import mujoco
            # without the simulated time that a warning ends in, or each would be a new text
            mujoco.set_mju_user_warning(lambda text: say_once(text.split(" Time = ")[0]))
        return gym.vector.SyncVectorEnv([make_env] * args.num_envs,
                                        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    except (gym.error.Error, ImportError) as error:
        reason = str(error).split("\n")[0]
        if isinstance(error, gym.error.UnregisteredEnv):
            near = difflib.get_close_matches(args.env_id, gym.registry, n=3)
            reason += f" Nearest names: {', '.join(near) or 'none'}."
        raise UserError(f"--env-id {args.env_id}: {reason}")


say_once = functools.cache(functools.partial(print, file=sys.stderr))  # one line per text


def env_seeds(args: Args, stream: int) -> list[int]:
    """N seeds for envs.reset: all different, also between runs with neighbouring --seed."""
    return np.random.SeedSequence((args.seed, stream)).generate_state(args.num_envs).tolist()


def finished_episodes(infos: dict) -> list[tuple[float, int]]:
    """(raw return, length) of every episode that ended in this step."""
    if "final_info" not in infos:
        return []
    stats, ended = infos["final_info"]["episode"], np.flatnonzero(infos["_final_info"])
    return [(float(stats["r"][i]), int(stats["l"][i])) for i in ended]


# ==================================================================================================
# 3. Agent    [shared: either]
# ==================================================================================================
class RunningStats(nn.Module):
    """Running mean, variance and std in buffers: saved with the agent, changed by update() only."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Merge n samples, (n, *shape), a share w = n/(count + n) of all:

            mean ← mean + w Δ,   var ← (1−w) var + w var_new + w(1−w) Δ²,   Δ = mean_new − mean
        """
        var, mean = torch.var_mean(batch.to(self.mean.device, torch.float64), 0, correction=0)
        self.count.add_(len(batch))
        share, delta = len(batch) / float(self.count), mean - self.mean
        self.mean.add_(share * delta)
        self.var.add_(share * (var - self.var + (1 - share) * delta.square()))
        self.std.copy_((self.var + 1e-8).sqrt())


class Gaussian(torch.distributions.Distribution):
    """Independent Gaussians over the last dimension, π(a|s) = Π_i N(a_i; μ_i(s), σ_i²)."""

    def __init__(self, mean: Tensor, log_std: Tensor):
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)
        self.loc, self.log_std = mean, log_std

    @property
    def mode(self) -> Tensor:
        return self.loc

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        noise = torch.randn((*sample_shape, *self.loc.shape), device=self.loc.device)
        return torch.addcmul(self.loc, self.log_std.exp(), noise).detach()

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) = Σ_i [ −½ ((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π ]    (..., A) → (...)"""
        z = (actions - self.loc) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """H(π) = Σ_i [ log σ_i + ½ log 2πe ]    → (...)"""
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return entropy.expand(self.batch_shape)


class Categorical(torch.distributions.Distribution):
    """One of n actions, π(a|s) = softmax(logits)_a."""

    def __init__(self, logits: Tensor):
        super().__init__(logits.shape[:-1], validate_args=False)
        self.logprobs = logits.log_softmax(-1)

    @property
    def mode(self) -> Tensor:
        return self.logprobs.argmax(-1)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """argmax_a [log π(a|s) + Gumbel noise], where −log of an Exp(1) variable is Gumbel."""
        logprobs = self.logprobs.detach().expand(*sample_shape, *self.logprobs.shape)
        return (logprobs - torch.empty_like(logprobs).exponential_().log()).argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s)    (...) → (...)"""
        logprobs = self.logprobs.expand(*actions.shape, -1)
        return logprobs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """H(π) = −Σ_a π(a|s) log π(a|s)    → (...)"""
        return -(self.logprobs.exp() * self.logprobs).sum(-1)


class Agent(nn.Module):
    """Policy π(a|s), value function V(s) and the running normalisation that both depend on.

    Two networks, one for the policy and one for V(s). For Discrete actions the policy's outputs are
    the logits; for a vector of real numbers they are the mean μ(s), and log σ is a parameter, the
    same in all states.
    """

    def __init__(self, envs: gym.vector.VectorEnv, args: Args = Args()):
        super().__init__()
        space, obs_size = envs.single_action_space, envs.single_observation_space.shape[0]
        self.continuous = (isinstance(space, gym.spaces.Box) and space.dtype.kind == "f"
                           and len(space.shape) == 1)
        if not self.continuous and not isinstance(space, gym.spaces.Discrete):
            raise UserError(f"--env-id {args.env_id}: its actions are {space}; this script needs "
                            "Discrete actions or a vector of real numbers (Box)")
        self.args = args
        self.obs_stats, self.return_stats = RunningStats((obs_size,)), RunningStats(())
        self.running_return: np.ndarray | float = 0.0  # (N,) for scale_rewards
        outputs = space.shape[0] if self.continuous else int(space.n)
        self.actor = self.network(obs_size, outputs, gain=0.01)  # μ or logits ≈ 0 at first
        self.critic = self.network(obs_size, 1, gain=1.0)
        if self.continuous:
            bounded = (space.low > -1e9) & (space.high < 1e9)  # some have 3e38 for no bound
            low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
            self.scale, self.shift = (high - low) / 2, (high + low) / 2  # 1 and 0 if not bounded
            self.low, self.high = space.low, space.high
            self.log_std = nn.Parameter(torch.full(space.shape, args.log_std_init))
        else:
            self.first_action = int(space.start)

    def network(self, inputs: int, outputs: int, gain: float) -> nn.Sequential:
        """Two hidden layers of 64; `gain` scales the last layer's weights. [IM §3]"""
        layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
        if self.args.ortho_init:
            for layer, layer_gain in zip(layers, (math.sqrt(2), math.sqrt(2), gain)):
                nn.init.orthogonal_(layer.weight, layer_gain)
                nn.init.zeros_(layer.bias)
        activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[self.args.activation]
        return nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2])

    def normalise(self, obs: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """(s − mean) / std by the running statistics, clipped.    (..., O), Tensor or array"""
        if not self.args.norm_obs:
            return obs
        mean, std = self.obs_stats.mean, self.obs_stats.std
        if isinstance(obs, np.ndarray):
            mean, std = mean.numpy(), std.numpy()
        return ((obs - mean) / std).clip(-self.args.clip_obs, self.args.clip_obs)

    def distribution(self, outputs: Tensor) -> Gaussian | Categorical:
        """π(·|s) for the actor's outputs, means or logits.    (..., A) → batch shape (...)"""
        return Gaussian(outputs, self.log_std) if self.continuous else Categorical(outputs)

    def policy(self, obs: Tensor) -> Gaussian | Categorical:
        """π(·|s) for raw observations.    (..., O) → distribution of batch shape (...)"""
        return self.distribution(self.actor(self.normalise(obs)))

    def value(self, obs: Tensor) -> Tensor:
        """V(s) for raw observations, in units of the scaled reward.    (..., O) → (...)"""
        return self.critic(self.normalise(obs)).squeeze(-1)

    def to_env(self, actions: Tensor) -> np.ndarray:
        """What the environment gets: an index, counted from the space's first action; or the
        sample with [−1, 1] stretched to its bounds, then clipped.

        The sample itself is what is stored: log π belongs to it, not to the clipped action.
        """
        if not self.continuous:
            return actions.numpy() + self.first_action
        return (actions.numpy() * self.scale + self.shift).clip(self.low, self.high)

    def scale_rewards(self, rewards: Tensor, done: Tensor) -> Tensor:
        """r_t / std(R), where R_t = r_t + γ R_{t−1} starts anew with every episode. [IM §3]

        (T, N) → (T, N), on the CPU, the sum in NumPy (see in_numpy). No mean is subtracted: that
        would change the task.
        """
        if not self.args.norm_reward:
            return rewards
        discounted, running_return = [], self.running_return
        for reward, goes_on in zip(rewards.numpy(), ~done.numpy()):  # (N,) each, t = 0 … T−1
            discounted.append(self.args.gamma * running_return + reward)
            running_return = discounted[-1] * goes_on
        self.running_return = running_return
        self.return_stats.update(torch.from_numpy(np.concatenate(discounted)))
        scaled = rewards / self.return_stats.std.cpu()
        return scaled.clamp(-self.args.clip_reward, self.args.clip_reward)


# ==================================================================================================
# 4. Rollout    [shared: actor-critic]
# ==================================================================================================
class Rollout(NamedTuple):
    """T steps of N environments. terminated[t] and done[t] say how transition t ended."""

    obs: Tensor  # (T, N, O) s_t, raw
    actions: Tensor  # (T, N, A) or (T, N), a_t as sampled
    rewards: Tensor  # (T, N) r_t, raw
    next_obs: Tensor  # (T, N, O) s_{t+1}; where an episode ended, its last observation
    terminated: Tensor  # (T, N) bool: the task ended, nothing follows
    done: Tensor  # (T, N) bool: the episode ended, by termination or by a time limit
    episodes: list[tuple[int, float, int]]  # (step of this rollout, return, length) of the ended

    @property
    def size(self) -> int:
        """Environment steps taken, B."""
        return self.rewards.numel()


def in_numpy(layer: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The same function of the same weights, computed by NumPy. For a few rows that is several
    times faster: the time goes into calling an operation, and NumPy's calls are cheaper."""
    if isinstance(layer, nn.Sequential):
        parts = [in_numpy(part) for part in layer]
        return lambda x: functools.reduce(lambda y, part: part(y), parts, x)
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
        return lambda x: x @ weight + bias
    if isinstance(layer, nn.Tanh):
        return np.tanh
    return lambda x: layer(torch.from_numpy(x)).numpy()  # any other layer: by PyTorch


@torch.no_grad()
def collect_rollout(agent: Agent, envs: gym.vector.VectorEnv, obs: np.ndarray, args: Args
                    ) -> tuple[Rollout, np.ndarray]:
    """Act for T steps in N environments, starting from obs (N, O); also returns the next obs.

    Only what must be sequential happens here. Values and log-probabilities follow in a few large
    calls, which is exact: nothing that they depend on changes within a rollout. The actor runs on
    the CPU, in NumPy: for a few rows that is faster than launching a GPU's kernels.
    """
    agent = copy.deepcopy(agent).cpu() if next(agent.parameters()).is_cuda else agent
    actor, steps, episodes = in_numpy(agent.actor), [], []
    for t in range(args.num_steps):
        outputs = torch.from_numpy(actor(agent.normalise(obs)))
        actions = agent.distribution(outputs).sample()  # as agent.policy(obs).sample()
        next_obs, rewards, terminated, truncated, infos = envs.step(agent.to_env(actions))
        successor = next_obs
        if "final_obs" in infos:  # next_obs is already the next episode's first: put the last back
            ended, successor = infos["_final_obs"], next_obs.copy()
            successor[ended] = np.stack(infos["final_obs"][ended])
            episodes += [((t + 1) * args.num_envs, *end) for end in finished_episodes(infos)]
        steps.append((obs, actions.numpy(), rewards.astype(np.float32), successor,
                      terminated, terminated | truncated))
        obs = next_obs
    return Rollout(*(torch.from_numpy(np.array(x)) for x in zip(*steps)), episodes), obs


# ==================================================================================================
# 5. Advantages    [shared: actor-critic]
# ==================================================================================================
def compute_gae(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor,
                done: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation, with the two ways in which an episode ends. [GAE eq. 16]

        δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
        Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}

    All (T, N). After a termination there is nothing to come, so V(s_{t+1}) is cut; after any end,
    a time limit too, Â_{t+1} belongs to another episode, so the recursion is cut.
    """
    assert rewards.shape == values.shape == next_values.shape == terminated.shape == done.shape
    deltas = rewards + gamma * (next_values * ~terminated.bool()) - values
    decay = gamma * gae_lambda * (~done.bool()).to(deltas)
    advantages, advantage = [], torch.zeros_like(deltas[0])
    for delta, decay_t in zip(deltas.flip(0), decay.flip(0)):  # (N,) each, t = T−1 … 0
        advantage = delta + decay_t * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


class Batch(NamedTuple):
    """What an update learns from: time and environments merged, B = T·N. Nothing has a gradient."""

    obs: Tensor  # (B, O) raw
    actions: Tensor  # (B, A) or (B,)
    logprobs: Tensor  # (B,) log π_old(a|s)
    values: Tensor  # (B,) V(s) before the update
    advantages: Tensor  # (B,) Â
    returns: Tensor  # (B,) Â + V(s), the critic's target


@torch.no_grad()
def make_batch(agent: Agent, rollout: Rollout, args: Args) -> Batch:
    """Scale the rewards (which updates their statistics); values, log π_old and advantages of the
    whole rollout in a few calls."""
    device = next(agent.parameters()).device
    obs, actions = rollout.obs.to(device), rollout.actions.to(device)
    values, next_values = agent.value(torch.stack([obs, rollout.next_obs.to(device)])).cpu()
    rewards = agent.scale_rewards(rollout.rewards, rollout.done)
    advantages = compute_gae(rewards, values, next_values, rollout.terminated, rollout.done,
                             args.gamma, args.gae_lambda)
    logprobs = agent.policy(obs).log_prob(actions)
    batch = Batch(obs, actions, logprobs, values, advantages, advantages + values)
    return Batch(*(x.flatten(0, 1).to(device) for x in batch))


# ==================================================================================================
# 6. Objective    [specific]
# ==================================================================================================
def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The surrogate, negated for a minimiser.    (B,) each → scalar    [TRPO eq. 14]

        L = −mean[ ρ Â ],    ρ = π(a|s) / π_old(a|s)

    At π_old its gradient is the policy gradient. Away from π_old it estimates the improvement well
    only while KL(π_old ‖ π) is small.
    """
    assert logprobs.shape == old_logprobs.shape == advantages.shape
    return -((logprobs - old_logprobs).exp() * advantages).mean()


def kl_divergence(old: Gaussian | Categorical, new: Gaussian | Categorical) -> Tensor:
    """KL(π_old ‖ π) in each state, in closed form.    → (...)

        Categorical   Σ_a π_old(a) [ log π_old(a) − log π(a) ]
        Gaussian      Σ_i [ log σ_i − log σ_old,i + (σ_old,i² + (μ_old,i − μ_i)²) / 2σ_i² − ½ ]
    """
    assert old.batch_shape == new.batch_shape
    if isinstance(old, Categorical):
        return (old.logprobs.exp() * (old.logprobs - new.logprobs)).sum(-1)
    squares = (2 * old.log_std).exp() + (old.loc - new.loc).square()
    return (new.log_std - old.log_std + 0.5 * squares / (2 * new.log_std).exp() - 0.5).sum(-1)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | None = None
               ) -> Tensor:
    """½ mean (V − R)²; if clipped, ½ mean max[(V − R)², (V_old + clip(V − V_old, ±ε) − R)²].

    (M,) each → scalar. [PPO eq. 9, with a ½.] Value clipping is not in the paper, and depends on
    the scale of the rewards.
    """
    assert values.shape == old_values.shape == returns.shape
    if clip_coef is None:
        return 0.5 * F.mse_loss(values, returns)
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return 0.5 * torch.max((values - returns).square(), (clipped - returns).square()).mean()


# ==================================================================================================
# 7. Update    [specific]
# ==================================================================================================
def flat_gradient(scalar: Tensor, parameters: list[nn.Parameter], **options: bool) -> Tensor:
    """∇_θ of a scalar as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters, **options)])


def fisher_vector_product(kl_gradient: Tensor, parameters: list[nn.Parameter], v: Tensor,
                          damping: float) -> Tensor:
    """F v + damping · v, where F = ∇²_θ mean KL(π_old ‖ π) at π_old.    (P,) → (P,) [TRPO app. C]

        F v = ∇_θ [ (∇_θ KL)ᵀ v ]

    so F itself, P × P, is never built. kl_gradient: ∇_θ KL with its graph (create_graph=True). At
    π_old the KL and its gradient are zero, but the gradient's slope is not: that is F.
    """
    return flat_gradient(kl_gradient @ v, parameters, retain_graph=True) + damping * v


def conjugate_gradient(matvec: Callable[[Tensor], Tensor], b: Tensor, iters: int) -> Tensor:
    """x with A x ≈ b, for symmetric positive definite A given by matvec(v) = A v.    (P,) → (P,)

    Each direction p is A-orthogonal to those before it, so no step undoes another. Stops early at
    a residual that is very small next to b, b = 0 included, and where pᵀA p is not positive.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squared = residual @ residual
    for _ in range(iters):
        if squared <= 1e-10 * (b @ b):
            break
        product = matvec(direction)
        curvature = direction @ product
        if curvature <= 0:
            break
        step = squared / curvature
        x, residual = x + step * direction, residual - step * product
        squared, previous = residual @ residual, squared
        direction = residual + squared / previous * direction
    return x


@torch.no_grad()
def line_search(losses: Callable[[], tuple[Tensor, Tensor]], parameters: list[nn.Parameter],
                full_step: Tensor, loss_before: Tensor, args: Args) -> float:
    """The first of the steps c⁰, c¹, c² … times full_step with KL ≤ δ and a loss below loss_before.

    losses() gives (policy loss, KL) at the parameters as they are. Returns the fraction accepted;
    0 if none was, and then the parameters are what they were, bit for bit. [TRPO app. C]
    With --no-line-search the full step is taken, unchecked.
    """
    before = nn.utils.parameters_to_vector(parameters)
    for fraction in (args.backtrack_coef**j for j in range(args.backtrack_iters)):
        nn.utils.vector_to_parameters(before + fraction * full_step, parameters)
        loss, kl = losses()
        if not args.line_search or (kl <= args.target_kl and loss < loss_before):
            return fraction
    nn.utils.vector_to_parameters(before, parameters)
    return 0.0


class Adam(nn.Module):
    """Adam on θ, one vector that holds the parameters: the layers' weights become views of it.

        m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²,   θ ← θ − α m̂ / (√v̂ + ε)    [ADAM, algorithm 1]

    m̂ and v̂ are m and v divided by 1 − βᵏ (k: steps so far), as both start at 0. On one vector
    that is a handful of operations: cheap to call, and easy to compile together with the gradient.
    ε = 1e-5, not the usual 1e-8, is folklore.
    """

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float,
                 betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__()
        self.views, self.betas = parameters, betas
        self.theta = torch.cat([p.detach().flatten() for p in parameters])
        for p, view in zip(parameters, self.theta.split([p.numel() for p in parameters])):
            p.data = view.view_as(p)
        self.register_buffer("m", torch.zeros_like(self.theta))
        self.register_buffer("v", torch.zeros_like(self.theta))
        self.register_buffer("k", torch.zeros((), dtype=torch.float64, device=self.theta.device))
        self.register_buffer("lr", torch.tensor(learning_rate, device=self.theta.device))

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        beta1, beta2 = self.betas
        self.k += 1
        self.m.lerp_(gradient, 1 - beta1)
        self.v.lerp_(gradient.square(), 1 - beta2)
        m_hat, v_hat = self.m / (1 - beta1**self.k), self.v / (1 - beta2**self.k)
        self.theta -= self.lr * m_hat / (v_hat.sqrt() + 1e-5)


def make_optimizer(agent: Agent, args: Args) -> Adam:
    """For the critic alone, as --learning-rate and --max-grad-norm are."""
    return Adam(list(agent.critic.parameters()), args.learning_rate)


def critic_step(agent: Agent, optimizer: Adam, batch: Batch, args: Args, idx: Tensor) -> Tensor:
    """One step of the critic on the transitions idx (M,); returns the gradient's norm before
    clipping."""
    obs, values, returns = (x[idx] for x in (batch.obs, batch.values, batch.returns))
    clip_value = args.clip_coef if args.clip_vloss else None
    loss = value_loss(agent.value(obs), values, returns, clip_value)
    gradient = flat_gradient(loss, optimizer.views)
    norm = gradient.norm()
    if args.max_grad_norm:
        gradient = gradient * (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer.step(gradient)
    return norm


@functools.cache
def compiled(function):
    torch._dynamo.config.trace_autograd_ops = True  # the backward pass in the same function
    return torch.compile(function, fullgraph=True)


def cuda_graph(step, idx: Tensor):
    """Record the kernels of step(idx), without running them, to launch them all at once on other
    indices: networks of this size keep a GPU waiting for the next launch."""
    graph, buffer = torch.cuda.CUDAGraph(), idx.clone()
    with torch.cuda.graph(graph):
        result = step(buffer)

    def replay(idx: Tensor) -> Tensor:
        buffer.copy_(idx)
        graph.replay()
        return result.clone()

    return replay


def update(agent: Agent, optimizer: Adam, rollout: Rollout, args: Args) -> dict[str, float]:
    """One step of the policy within the trust region, then the critic's fit; returns metrics."""
    assert optimizer.theta.data_ptr() == optimizer.views[0].data_ptr(), "agent moved after Adam()"
    batch = make_batch(agent, rollout, args)
    if args.norm_adv:
        centred = batch.advantages - batch.advantages.mean()
        batch = batch._replace(advantages=centred / (centred.std() + 1e-8))
    # not in the paper: δ falls with the learning rate, or the policy would never settle
    delta = args.target_kl * float(optimizer.lr / args.learning_rate)
    metrics = policy_update(agent, batch, dataclasses.replace(args, target_kl=delta))
    metrics |= critic_update(agent, optimizer, batch, args)
    agent.obs_stats.update(rollout.obs.flatten(0, 1))  # only now: they are part of π_old
    return {name: float(value) for name, value in metrics.items()}


def policy_update(agent: Agent, batch: Batch, args: Args) -> dict[str, Tensor | float]:
    """θ ← θ + α √(2δ / xᵀFx) x,  x ≈ F⁻¹g,  α from the line search. [TRPO §6 and app. C]

    ½ sᵀFs is the KL of a small step s, so the full step (α = 1) would have KL δ. Here F includes
    the damping, so its KL is smaller than δ.
    """
    parameters = [p for name, p in agent.named_parameters() if not name.startswith("critic")]
    with torch.no_grad():
        old = copy.deepcopy(agent).policy(batch.obs)  # a copy's: log σ would move with the step

    def losses() -> tuple[Tensor, Tensor]:
        policy = agent.policy(batch.obs)
        loss = policy_loss(policy.log_prob(batch.actions), batch.logprobs, batch.advantages)
        return loss, kl_divergence(old, policy).mean()

    loss, kl = losses()
    gradient = -flat_gradient(loss, parameters, retain_graph=True)
    kl_gradient = flat_gradient(kl, parameters, create_graph=True)
    fisher = functools.partial(fisher_vector_product, kl_gradient, parameters,
                               damping=args.cg_damping)
    x = conjugate_gradient(fisher, gradient, args.cg_iters)
    curvature = x @ fisher(x)  # 0 if g = 0; below 0 by rounding at most: then no step
    full_step = (2 * args.target_kl / curvature).sqrt() * x if curvature > 0 else 0 * x
    fraction = line_search(losses, parameters, full_step, loss.detach(), args)
    with torch.no_grad():
        policy = agent.policy(batch.obs)
        logprobs = policy.log_prob(batch.actions)
        ratio = (logprobs - batch.logprobs).exp()
        return {
            "policy_loss_before": loss.detach(),
            "policy_loss": policy_loss(logprobs, batch.logprobs, batch.advantages),
            "kl_before": kl.detach(),
            "kl": kl_divergence(old, policy).mean(),
            "step_fraction": fraction,
            "line_search_failed": float(fraction == 0),
            "entropy": policy.entropy().mean(),
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
            "grad_norm": gradient.norm(),
        }


def critic_update(agent: Agent, optimizer: Adam, batch: Batch, args: Args) -> dict[str, Tensor]:
    """Epochs of minibatch steps towards the returns; the policy's parameters are not touched."""
    step = functools.partial(compiled(critic_step) if args.compile else critic_step,
                             agent, optimizer, batch, args)
    grad_norms, B, device = [], args.batch_size, batch.obs.device
    shuffled = torch.cat([torch.randperm(B, device=device) for _ in range(args.critic_epochs)])
    for idx in shuffled.split(B // args.num_minibatches):  # (M,); M divides B: no epoch is cut
        if idx.is_cuda and len(grad_norms) == 1:  # the first step runs as it is, to warm up
            step = cuda_graph(step, idx)
        grad_norms.append(step(idx))
    with torch.no_grad():
        loss = value_loss(agent.value(batch.obs), batch.values, batch.returns)
    return {
        "value_loss": loss,
        "explained_variance": 1 - (batch.returns - batch.values).var() / batch.returns.var(),
        "critic_grad_norm": torch.stack(grad_norms).mean(),
    }


# ==================================================================================================
# 8. Logging and checkpoints    [shared: all five]
# ==================================================================================================
ALGORITHM = Path(__file__).stem


@dataclass
class Progress:
    """Where a run stands."""

    iteration: int = 0
    global_step: int = 0
    seconds: float = 0.0
    episodes: int = 0
    last_returns: list[float] = field(default_factory=list)  # raw, of the last 100 episodes
    since_row: list[tuple[int, float, int]] = field(default_factory=list)  # ended, in no row yet

    def advance(self, rollout: Rollout, seconds: float) -> None:
        self.iteration += 1
        self.global_step += rollout.size
        self.seconds += seconds
        self.episodes += len(rollout.episodes)
        self.last_returns = (self.last_returns + [e[1] for e in rollout.episodes])[-100:]
        self.since_row += rollout.episodes


class Logger:
    """progress.csv, TensorBoard, W&B, and a progress bar (plain lines if not on a terminal)."""

    def __init__(self, args: Args, run_dir: Path, progress: Progress):
        self.path, self.total, self.marks = run_dir / "progress.csv", args.total_timesteps, 0
        self.last_start = self.total - args.batch_size  # after it, no iteration begins
        if self.path.exists():  # resumed: rows after the checkpoint will be written again
            rows = [r for r in csv.reader(self.path.open()) if r and (
                    r[0] == "iteration" or r[0].isdigit() and int(r[0]) <= progress.iteration)]
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        self.tensorboard = SummaryWriter(str(run_dir), purge_step=progress.global_step + 1)
        self.wandb = None
        if args.track:
            import wandb
            try:
                self.wandb = wandb.init(
                    project=args.wandb_project_name, entity=args.wandb_entity, dir=str(run_dir),
                    name=run_dir.name, id=run_dir.name, resume="allow",
                    config=dataclasses.asdict(args))
            except wandb.Error as error:
                raise UserError(f"--track: {error} (WANDB_MODE=offline needs no account)")
            self.wandb.define_metric("*", step_metric="global_step")
        self.bar = tqdm(total=self.total, initial=progress.global_step, file=sys.stdout,
                        disable=not sys.stdout.isatty(), dynamic_ncols=True,
                        bar_format="{n:,}/{total:,} steps |{bar}| {elapsed}<{remaining}{postfix}")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.tensorboard.add_scalar(tag, value, step)
        if self.wandb:
            self.wandb.log({"global_step": step, **values})

    def log(self, progress: Progress, rollout: Rollout, metrics: dict[str, float]) -> None:
        """One iteration, one row; but iterations of fewer than 1,000 steps (in short runs: of less
        than a hundredth of the run) share a row, with the last one's metrics. The run's end has a
        row. episodic_return and episodic_length are means over the episodes that ended since the
        last row (empty if none did), return_100 is the mean of the last 100."""
        start = progress.global_step - rollout.size
        for step, episodic_return, length in rollout.episodes:
            self.scalars(start + step, {"charts/episodic_return": episodic_return,
                                        "charts/episodic_length": length})
        spacing = max(1, min(1000, self.total // 100))
        if (progress.global_step // spacing == start // spacing
                and progress.global_step <= self.last_start):
            return
        sps = round(progress.global_step / progress.seconds)
        charts = {"charts/SPS": sps, "charts/learning_rate": metrics["learning_rate"]}
        losses = {f"losses/{k}": v for k, v in metrics.items() if k != "learning_rate"}
        self.scalars(progress.global_step, charts | losses)
        _, returns, lengths = zip(*progress.since_row) if progress.since_row else [()] * 3
        progress.since_row = []
        row = {"iteration": progress.iteration, "global_step": progress.global_step,
               "seconds": round(progress.seconds, 3), "episodes": progress.episodes,
               "episodic_return": mean_or_blank(returns),
               "episodic_length": mean_or_blank(lengths), "SPS": sps,
               "return_100": mean_or_blank(progress.last_returns), **metrics}
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([row.values()] if file.tell() else [row, row.values()])
        average = f"{row['return_100']:.1f}" if progress.last_returns else "–"
        text = f"return {average}, {sps:,} SPS"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(progress.global_step - self.bar.n)
        if self.bar.disable and progress.global_step * 20 // self.total > self.marks:
            self.marks = progress.global_step * 20 // self.total
            print(f"step {progress.global_step:,} of {self.total:,}: {text}", flush=True)

    def close(self) -> None:
        self.bar.close()
        self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def mean_or_blank(values: Sequence[float]) -> float | str:
    """Empty, not zero, where there is nothing to average."""
    return float(np.mean(values)) if values else ""


def save_checkpoint(run_dir: Path, agent: Agent, optimizer: nn.Module, args: Args,
                    progress: Progress) -> None:
    """Tensors and plain values only; renamed into place, so a crash leaves the last one whole."""
    checkpoint = {
        "algorithm": ALGORITHM, "args": dataclasses.asdict(args),
        "progress": dataclasses.asdict(progress), "agent": agent.state_dict(),
        "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None}
    torch.save(checkpoint, run_dir / "checkpoint.tmp")
    os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")


def load_checkpoint(flag: str, run_dir: str) -> dict:
    """UserError if there is none, it cannot be read, or another script wrote it."""
    path = Path(run_dir, "checkpoint.pt")
    if not path.is_file():
        raise UserError(f"{flag} {run_dir}: no checkpoint.pt there; give a run directory")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["algorithm"] == ALGORITHM:
            return checkpoint | {"args": Args(**checkpoint["args"]),
                                 "progress": Progress(**checkpoint["progress"])}
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{flag} {run_dir}: checkpoint.pt is damaged, or from another version of "
                        f"this script ({type(error).__name__})")
    raise UserError(f"{flag} {run_dir}: a run of {checkpoint['algorithm']}.py, use that script")


def restore(flag: str, args: Args, agent: Agent, optimizer: nn.Module) -> Progress:
    """Put everything back but the environments, whose running episodes start anew."""
    run_dir = args.resume or args.evaluate
    checkpoint = load_checkpoint(flag, run_dir)
    trained_on = checkpoint["args"].env_id
    if trained_on != args.env_id:
        raise UserError(f"{flag} {run_dir}: a run on {trained_on}, not on --env-id {args.env_id}")
    try:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"])
        if torch.cuda.is_initialized() and checkpoint["cuda_rng"] is not None:
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{flag} {run_dir}: checkpoint.pt does not fit this script's networks "
                        f"({type(error).__name__})")
    return checkpoint["progress"]


# ==================================================================================================
# 9. Training, evaluation, command line    [shared: all five]
# ==================================================================================================
def check_numbers(args: Args) -> None:
    """UserError for the first flag whose value is outside of its range."""
    above_0 = ("total_timesteps num_envs num_steps learning_rate update_epochs num_minibatches "
               "clip_coef clip_obs clip_reward target_kl episodes_per_update critic_epochs "
               "cg_iters backtrack_iters")
    for names, limits, inside in (
            (above_0, "above 0", lambda x: x > 0),
            ("ent_coef vf_coef max_grad_norm cg_damping eval_episodes", "0 or above",
             lambda x: x >= 0),
            ("seed", "from 0 to 2^64 − 1", lambda x: 0 <= x < 2**64),
            ("gamma gae_lambda backtrack_coef", "from 0 to 1", lambda x: 0 <= x <= 1)):
        for name in names.split():
            value = getattr(args, name, None)
            if value is not None and not inside(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: must be {limits}")
    for name, value in vars(args).items():
        if isinstance(value, float) and not (np.isfinite(value) or name.startswith("clip_")):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be finite")


def check_args(args: Args) -> None:
    """UserError for the first flag that cannot work, before anything is written."""
    check_numbers(args)
    if "" in (args.resume, args.evaluate):
        raise UserError('--resume "" or --evaluate "": give a run directory')
    if args.evaluate and (args.resume or not args.eval_episodes):
        raise UserError(f"--evaluate {args.evaluate}: goes with neither --resume nor "
                        "--eval-episodes 0")
    if args.batch_size > args.total_timesteps:
        raise UserError(f"--total-timesteps {args.total_timesteps}: less than one iteration, "
                        f"{args.batch_size} steps")
    parts = getattr(args, "num_minibatches", None)
    if parts and (args.batch_size % parts or args.batch_size // parts < 2):
        raise UserError(f"--num-minibatches {parts}: must divide the batch of {args.batch_size} "
                        "(--num-envs × --num-steps) into minibatches of 2 or more: change one "
                        "of the three")
    if hasattr(args, "num_steps") and args.batch_size == 1:
        raise UserError(f"--num-steps {args.num_steps}: with --num-envs 1 that is a batch of one "
                        "step, which has no spread; raise either")
    episodes, group = getattr(args, "episodes_per_update", 0), getattr(args, "baseline", "")
    if episodes % args.num_envs:
        raise UserError(f"--episodes-per-update {episodes}: must be a multiple of --num-envs "
                        f"{args.num_envs}, which play one episode each per round")
    if group == "group" and args.num_envs == 1:
        raise UserError("--baseline group: compares the episodes of a round, so it needs "
                        "--num-envs 2 or more")
    compilers = map(shutil.which, ("c++", "g++", "clang++", "cl"))
    if getattr(args, "compile", False) and not args.evaluate and not any(compilers):
        raise UserError("--compile: needs a C++ compiler, for instance g++, and there is none "
                        "(--no-compile goes without)")
    if args.track and not args.evaluate and not importlib.util.find_spec("wandb"):
        raise UserError("--track: needs wandb (pip install wandb)")
    if args.capture_video:
        check_video(args)


def check_video(args: Args) -> None:
    """UserError if there are no episodes to film, no frame can be drawn or moviepy is missing."""
    if not args.eval_episodes:
        raise UserError("--capture-video: films the evaluation, so not with --eval-episodes 0")
    make_envs(dataclasses.replace(args, num_envs=1)).close()  # says what is wrong with --env-id
    try:
        env = gym.make(args.env_id, render_mode="rgb_array")
        env.reset()
        env.render()
        env.close()
        importlib.metadata.version("moviepy")
    except Exception as error:
        raise UserError(f"--capture-video: cannot film {args.env_id}: {error} (pip install moviepy "
                        "if that is missing; MuJoCo without a display: MUJOCO_GL=egl or osmesa)")


def check_finite(step: int, quantities: dict[str, Tensor | float]) -> None:
    """UserError that names the first quantity with a NaN or an infinity in it."""
    for name in ("obs", "next_obs", "rewards", "policy_loss", "value_loss", "approx_kl"):
        if name in quantities and not np.isfinite(np.asarray(quantities[name])).all():
            advice = ("Often a smaller --learning-rate helps (TRPO's policy: --target-kl)"
                      if name in ("policy_loss", "value_loss", "approx_kl") else
                      "The environment returned it")
            raise UserError(f"{name} is NaN or infinite by step {step:,}: training stops, what was "
                            f"saved before stays as it is. {advice}")


def start(args: Args) -> torch.device:
    """Seed the random number generators and choose the device."""
    torch.manual_seed(args.seed)
    random.seed(args.seed)  # this one and the next for environments that draw from them
    np.random.seed(args.seed % 2**32)
    torch.set_num_threads(1)  # networks of this size lose with more
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS is not deterministic
    torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and we never read it
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


def train(args: Args) -> Agent:
    """A whole run: start or resume, iterate, save, evaluate."""
    check_args(args)
    device, envs = start(args), make_envs(args)
    agent = Agent(envs, args).to(device)
    optimizer, progress = make_optimizer(agent, args), Progress()
    name = re.sub("[/:]", "-", f"{args.env_id}__{args.exp_name}__{args.seed}")
    run_dir = Path(args.run_dir, f"{name}__{datetime.now():%Y%m%d-%H%M%S-%f}")
    if args.resume:
        run_dir, progress = Path(args.resume), restore("--resume", args, agent, optimizer)
    announce(args, envs, device, run_dir, progress)
    obs, _ = envs.reset(seed=env_seeds(args, progress.global_step))
    saved = began = time.perf_counter()
    with contextlib.closing(Logger(args, run_dir, progress)) as logger:
        with caught_signals() as stop:
            while not stop and progress.global_step + args.batch_size <= args.total_timesteps:
                step = progress.global_step
                lr = args.learning_rate * (1 - step / args.total_timesteps if args.anneal_lr else 1)
                optimizer.lr.fill_(lr)
                rollout, obs = collect_rollout(agent, envs, obs, args)
                check_finite(step + rollout.size, rollout._asdict())
                metrics = update(agent, optimizer, rollout, args)
                check_finite(step + rollout.size, metrics)
                now = time.perf_counter()
                progress.advance(rollout, now - began)
                began = now  # so that logging and saving count, too
                logger.log(progress, rollout, metrics | {"learning_rate": lr})
                if now - saved > 30:
                    save_checkpoint(run_dir, agent, optimizer, args, progress)
                    saved = now
        save_checkpoint(run_dir, agent, optimizer, args, progress)
        envs.close()
        logger.bar.close()
        if stop:
            print(f"stopped at step {progress.global_step:,}; to go on: --resume {run_dir}")
        elif args.eval_episodes:
            report_evaluation(agent, args, run_dir, logger.wandb)
    return agent


def announce(args: Args, envs: gym.vector.VectorEnv, device: torch.device, run_dir: Path,
             progress: Progress) -> None:
    """Say what is about to run, and write args.json."""
    facts = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
             "python": sys.version.split()[0]}
    for package in ("torch", "numpy", "gymnasium", "mujoco"):
        if importlib.util.find_spec(package):
            facts[package] = importlib.metadata.version(package)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {args.run_dir}: {error.strerror}")
    settings = {"algorithm": ALGORITHM} | dataclasses.asdict(args) | facts
    (run_dir / "args.json").write_text(json.dumps(settings, indent=2))
    print(f"{ALGORITHM}, {args.env_id}, seed {args.seed};", ", ".join(map(" ".join, facts.items())))
    if args.cuda and device.type == "cpu":
        print("--cuda: no usable GPU, so this runs on the CPU (--no-cuda: do not look for one)")
    if envs.get_attr("spec")[0].max_episode_steps is None:
        print(f"{args.env_id} has no registered time limit: its episodes must end by themselves")
    if args.resume:
        print(f"resumed at step {progress.global_step:,}; running episodes start anew")
    print(f"{args.plan}, in {run_dir}", flush=True)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go into a list, to be looked at between iterations; a second is final."""
    caught = []

    def handler(signum, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)
        # not print: the signal may have come in the middle of one
        os.write(2, b"\nstopping after this iteration; again: at once, unsaved\n")

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def evaluate(agent: Agent, args: Args, episodes: int, video_folder: Path | None = None
             ) -> list[float]:
    """Raw returns of whole episodes with frozen statistics, played one after the other (the first
    to end out of several played at once would be the short ones)."""
    args, returns = dataclasses.replace(args, num_envs=1), []
    envs, actor = make_envs(args, video_folder), copy.deepcopy(agent).cpu()
    obs, _ = envs.reset(seed=env_seeds(args, 2**31))  # not the episodes of the training
    while len(returns) < episodes:
        with torch.no_grad():
            policy = actor.policy(torch.from_numpy(obs))
            actions = policy.mode if args.eval_deterministic else policy.sample()
        obs, _, _, _, infos = envs.step(actor.to_env(actions))
        returns += [episodic_return for episodic_return, _ in finished_episodes(infos)]
    envs.close()
    return returns


def report_evaluation(agent: Agent, args: Args, run_dir: Path, wandb_run=None) -> None:
    """Evaluate, print, and write evaluation.json and, if asked, videos/ into the run directory."""
    videos = run_dir / "videos" if args.capture_video else None
    returns = evaluate(agent, args, args.eval_episodes, videos)
    actions = "deterministic" if args.eval_deterministic else "sampled"
    print(f"evaluation, {len(returns)} episodes, {actions} actions: "
          f"return {np.mean(returns):.1f} ± {np.std(returns):.1f}")
    if not args.evaluate:  # it stays what the run ended with
        text = json.dumps({"actions": actions, "returns": returns})
        (run_dir / "evaluation.json").write_text(text)
    if wandb_run and videos:
        import wandb
        wandb_run.log({f"videos/{v.stem}": wandb.Video(str(v)) for v in videos.glob("*.mp4")})


def parse_args() -> Args:
    """Flags; with --resume or --evaluate, the flags of that run, changed by those given now."""
    args = tyro.cli(Args, description=__doc__.splitlines()[0])
    for flag in ("resume", "evaluate"):
        if run_dir := getattr(args, flag):
            saved = load_checkpoint(f"--{flag}", run_dir)["args"]
            if flag == "evaluate":  # some episodes and no film, unless told otherwise
                saved.eval_episodes = saved.eval_episodes or Args.eval_episodes
                saved.capture_video = False
            return tyro.cli(Args, default=dataclasses.replace(saved, resume=None, evaluate=None))
    return args


def main() -> None:
    warnings.filterwarnings("once", message=".*out of date")  # Gymnasium's, at every gym.make
    try:
        args = parse_args()
        if not args.evaluate:
            train(args)
            return
        check_args(args)
        start(args)
        agent = Agent(make_envs(dataclasses.replace(args, num_envs=1)), args)
        restore("--evaluate", args, agent, make_optimizer(agent, args))
        report_evaluation(agent, args, Path(args.evaluate))
    except UserError as error:
        print(f"{ALGORITHM}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
