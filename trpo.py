"""Trust region policy optimisation (TRPO): the whole algorithm in one file.

The idea: data sampled by π_old are to be trusted near π_old only. Of the steps with mean
KL(π_old ‖ π) ≤ δ, TRPO takes (nearly) the one that gains most. ρ = π(a|s) / π_old(a|s).

    repeat until the step budget is spent                                       (7. train)
        run the policy, from now on called π_old, in N environments, T steps    (3. collect_rollout)
        estimate advantages Â (how much better than average) and returns R      (4. compute_gae)
        solve (F + damping I) x ≈ g = ∇ mean[ρÂ], F the Fisher matrix           (6. policy_update)
        step √(2δ / xᵀFx) x, shortened until KL ≤ δ and mean[ρÂ] grows          (6. line_search)
        fit V to the returns                                                    (6. critic_step)

What differs from ppo_continuous.py: the step has a bound, and actor and critic learn apart. With
--no-line-search it is the natural policy gradient [NPG], with a step length set by δ. GAE, Adam,
damping, scaled observations and rewards are not in [TRPO]; with --clip-vloss it is "TRPO+" [IM].

[TRPO] Schulman et al. 2015, Trust Region Policy Optimization, arXiv 1502.05477
[NPG] Kakade 2001, A Natural Policy Gradient, NeurIPS 14
[PPO] Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347
[GAE] Schulman et al. 2016, High-Dimensional Continuous Control Using GAE, arXiv 1506.02438
[IM]  Engstrom et al. 2020, Implementation Matters in Deep Policy Gradients, arXiv 2005.12729
Run it: python trpo.py --env-id HalfCheetah-v4
"""
from __future__ import annotations

import copy
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

if __name__ == "__main__":  # Ctrl-C needs no traceback, even during the imports, which take seconds
    sys.excepthook = lambda kind, *x: kind is KeyboardInterrupt or sys.__excepthook__(kind, *x)

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Part II defines Args (section 1 and flags such as --cuda), start (seeds, device), make_envs,
# RunningStats (mean and std of all data so far), actor_of (it acts as agent.policy(obs).sample(),
# but faster), Optimizer (parameters as one vector θ, its gradient, the loop over minibatches) and
# Run (counts steps, logs, saves). [shared: …] in a banner: these scripts have the same text there.


# ── 1. Hyperparameters [specific] ─────────────────────────────────────────────────────────────────
@dataclass
class Hyperparameters:
    env_id: str = "HalfCheetah-v4"  # Gymnasium environment
    seed: int = 1  # seed of networks, actions and environments
    total_timesteps: int = 1_000_000  # environment steps, all environments together
    num_envs: int = 8  # N, environments, stepped one after the other
    num_steps: int = 256  # T, steps per environment and iteration; the batch is B = T·N
    gamma: float = 0.993  # γ, discount factor
    gae_lambda: float = 0.95  # λ of GAE: 0 gives the TD error, 1 the rollout's return − V(s)
    learning_rate: float = 1e-3  # step size of the optimiser
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    target_kl: float = 0.04  # δ, largest mean KL of an update; falls with --anneal-lr, too
    cg_iters: int = 10  # iterations of the conjugate gradient method
    cg_damping: float = 0.03  # c: F, Fisher's matrix, becomes F + (c gᵀFg / gᵀg) I; g: gradient
    line_search: bool = True  # off: take the full step, the natural policy gradient
    backtrack_coef: float = 0.8  # each try of the line search shortens the step by this factor
    backtrack_iters: int = 10  # tries of the line search
    critic_epochs: int = 10  # passes of the critic over the batch
    num_minibatches: int = 32  # minibatches per pass, of M = B / num_minibatches transitions
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

    @property
    def batch_size(self) -> int:
        """B = T·N, environment steps per iteration."""
        return self.num_steps * self.num_envs


# ── 2. Agent [shared: either] ─────────────────────────────────────────────────────────────────────
class Gaussian(NamedTuple):
    """Independent Gaussians over the last dimension, π(a|s) = Π_i N(a_i; μ_i(s), σ_i²)."""
    mode: Tensor  # (..., A) μ(s), the mean and the likeliest action
    log_std: Tensor  # (A,) log σ

    def sample(self) -> Tensor:
        """μ + σ·noise, noise ~ N(0, 1), without a gradient; NumPy in, NumPy out    → (..., A)"""
        noise = np.random.standard_normal(self.mode.shape).astype(np.float32)
        if isinstance(self.mode, np.ndarray):
            return self.mode + np.exp(self.log_std) * noise
        return (self.mode + self.log_std.exp() * torch.from_numpy(noise).to(self.mode)).detach()

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) = Σ_i −½ ((a_i − μ_i)/σ_i)² − Σ_i [log σ_i + ½ log 2π]    (..., A) → (...)"""
        z = (actions - self.mode) / self.log_std.exp()
        return -0.5 * z.square().sum(-1) - (self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """H(π) = Σ_i [ log σ_i + ½ log 2πe ]    → (...)"""
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return entropy.expand(self.mode.shape[:-1])


class Categorical(NamedTuple):
    """One of n actions, π(a|s) = softmax(logits)_a."""
    logits: Tensor  # (..., n)

    @property
    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    @property
    def logprobs(self) -> Tensor:
        return self.logits.log_softmax(-1)  # (..., n)

    def sample(self) -> Tensor:
        """argmax_a [logit_a + Gumbel noise]; NumPy in, NumPy out    → (...)"""
        noise = np.random.gumbel(size=self.logits.shape)
        if isinstance(self.logits, Tensor):
            noise = torch.from_numpy(noise).to(self.logits)
        return (self.logits + noise).argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s)    (...) → (...)"""
        logprobs = self.logprobs.expand(*actions.shape, -1)
        return logprobs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """H(π) = −Σ_a π(a|s) log π(a|s)    → (...)"""
        return -(self.logprobs.exp() * self.logprobs).sum(-1)


class Agent(nn.Module):
    """Two networks, for the policy and for V(s), and the normalisation that both depend on.
    The policy's outputs are logits, or μ(s), with log σ a parameter, the same in all states."""

    def __init__(self, envs: gym.vector.VectorEnv, args: Args):
        super().__init__()
        space, obs_size = envs.single_action_space, envs.single_observation_space.shape[0]
        self.args, self.continuous = args, isinstance(space, gym.spaces.Box)
        self.obs_stats, self.return_stats = RunningStats((obs_size,)), RunningStats(())
        self.running_return = 0.0  # (N,) once there are rewards: γC of scale_rewards
        outputs = space.shape[0] if self.continuous else int(space.n)
        self.actor = self.network(obs_size, outputs, gain=0.01)  # μ or logits ≈ 0 at first
        self.critic = self.network(obs_size, 1, gain=1.0)
        if self.continuous:
            self.log_std = nn.Parameter(torch.full(space.shape, args.log_std_init))

    def network(self, inputs: int, outputs: int, gain: float) -> nn.Sequential:
        """Two hidden layers of 64; `gain` scales the last one's orthogonal weights. [IM §3]"""
        layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
        if self.args.ortho_init:
            for layer, layer_gain in zip(layers, (math.sqrt(2), math.sqrt(2), gain)):
                nn.init.orthogonal_(layer.weight, layer_gain)
                nn.init.zeros_(layer.bias)
        activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[self.args.activation]
        return nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2])

    def normalise(self, obs: Tensor) -> Tensor:
        """(s − mean) / std by the running statistics, clipped, in float32.    (..., O)"""
        if self.args.norm_obs:
            obs = (obs - self.obs_stats.mean) / self.obs_stats.std
            obs = obs.clip(-self.args.clip_obs, self.args.clip_obs)
        return obs.float() if isinstance(obs, Tensor) else obs.astype(np.float32)

    def policy(self, obs: Tensor) -> Gaussian | Categorical:
        """π(·|s) for raw observations.    (..., O) → distribution of batch shape (...)"""
        outputs = self.actor(self.normalise(obs))
        return Gaussian(outputs, self.log_std) if self.continuous else Categorical(outputs)

    def value(self, obs: Tensor) -> Tensor:
        """V(s) for raw observations, in units of the scaled reward.    (..., O) → (...)"""
        return self.critic(self.normalise(obs)).squeeze(-1)

    def scale_rewards(self, rewards: Tensor, done: Tensor) -> Tensor:
        """(T, N) → (T, N): updates std(C), divides by it, clips. C_t = r_t + γ C_{t−1} begins anew
        in each episode. [IM §3] No mean is subtracted, as that would change the task."""
        if not self.args.norm_reward:
            return rewards.float()
        sums, decay = rewards.numpy().copy(), self.args.gamma * ~done.numpy()
        for t in range(len(sums)):
            sums[t] += self.running_return
            self.running_return = decay[t] * sums[t]
        self.return_stats.update(torch.from_numpy(sums.ravel()))
        scaled = rewards / self.return_stats.std.cpu()
        return scaled.clamp(-self.args.clip_reward, self.args.clip_reward).float()


# ── 3. Rollout [shared: actor-critic] ─────────────────────────────────────────────────────────────
class Rollout(NamedTuple):
    """T steps of N environments. The flags at index t say what transition t ended."""
    obs: Tensor  # (T, N, O) s_t, raw
    actions: Tensor  # (T, N, A) or (T, N), a_t as sampled
    rewards: Tensor  # (T, N) r_t, raw
    next_obs: Tensor  # (T, N, O) s_{t+1}; where an episode ended, its last observation
    terminated: Tensor  # (T, N) bool: the task ended, nothing follows
    done: Tensor  # (T, N) bool: the episode ended, by termination or by a time limit
    episodes: list[tuple[int, float, int]]  # (step, return, length) of each that ended
    size: int  # B = T·N, environment steps taken


@torch.no_grad()
def collect_rollout(agent: Agent, envs: gym.vector.VectorEnv, obs: np.ndarray, args: Args
                    ) -> tuple[Rollout, np.ndarray]:
    """Act for T steps in N environments, starting from obs (N, O); also returns the next obs.

    Only what must be sequential happens here. Values and log-probabilities follow in a few large
    calls, as nothing that they depend on changes within a rollout."""
    act, steps, episodes = actor_of(agent, obs), [], []
    for t in range(args.num_steps):
        actions = act(obs)  # agent.policy(obs).sample(); envs clips what is out of bounds
        next_obs, rewards, terminated, truncated, infos = envs.step(actions)
        done, successor = terminated | truncated, next_obs
        if infos:  # an episode ended: next_obs is already the next one's first; put the last back
            successor = np.where(done[:, None], infos["final_obs"], next_obs)
            episodes += [((t + 1) * args.num_envs, *episode) for episode in infos["episodes"]]
        steps.append((obs, actions, rewards, successor, terminated, done))
        obs = next_obs
    columns = (torch.from_numpy(np.array(x)) for x in zip(*steps))
    return Rollout(*columns, episodes, args.batch_size), obs


# ── 4. Advantages [shared: actor-critic] ──────────────────────────────────────────────────────────
def compute_gae(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor,
                done: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation, with the two ways in which an episode ends. [GAE eq. 16]

        δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
        Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}

    All (T, N). After a termination there is nothing to come, so V(s_{t+1}) is cut; after any end,
    a time limit too, Â_{t+1} belongs to another episode, so the recursion is cut.
    """
    assert rewards.shape == values.shape == next_values.shape == terminated.shape == done.shape
    deltas = rewards + gamma * next_values * ~terminated.bool() - values
    advantages, decay = deltas.numpy(), (gamma * gae_lambda * ~done.bool()).numpy()
    for t in reversed(range(len(advantages) - 1)):  # Â_{T−1} = δ_{T−1}, as Â_T is not known
        advantages[t] += decay[t] * advantages[t + 1]
    return torch.from_numpy(advantages)


class Batch(NamedTuple):
    """What an update learns from: time and environments merged, B = T·N. Nothing has a gradient."""
    obs: Tensor  # (B, O) raw
    actions: Tensor  # (B, A) or (B,)
    logprobs: Tensor  # (B,) log π_old(a|s)
    values: Tensor  # (B,) V(s) before the update
    advantages: Tensor  # (B,) Â, standardised if --norm-adv
    returns: Tensor  # (B,) R = Â + V(s), Â as GAE gives it: the critic's target


@torch.no_grad()
def make_batch(agent: Agent, rollout: Rollout, args: Args) -> Batch:
    """Scaled rewards, values, advantages and log π_old of the whole rollout, in a few calls."""
    device = next(agent.parameters()).device
    obs, actions = rollout.obs.to(device), rollout.actions.to(device)
    values, next_values = agent.value(torch.stack([obs, rollout.next_obs.to(device)])).cpu()
    rewards = agent.scale_rewards(rollout.rewards, rollout.done)
    advantages = compute_gae(rewards, values, next_values, rollout.terminated, rollout.done,
                             args.gamma, args.gae_lambda)
    returns = advantages + values
    logprobs = agent.policy(obs).log_prob(actions)
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    batch = Batch(obs, actions, logprobs, values, advantages, returns)
    return Batch(*(x.flatten(0, 1).to(device) for x in batch))


# ── 5. Objective [specific] ───────────────────────────────────────────────────────────────────────
def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The surrogate, negated for a minimiser.    (B,) each → scalar    [TRPO eq. 14]

        L = −mean[ ρ Â ],    ρ = π(a|s) / π_old(a|s)

    At π_old, −∇L is the policy gradient. Away from π_old it estimates the improvement well
    only while KL(π_old ‖ π) is small."""
    assert logprobs.shape == old_logprobs.shape == advantages.shape
    return -((logprobs - old_logprobs).exp() * advantages).mean()


def kl_divergence(old: Gaussian | Categorical, new: Gaussian | Categorical) -> Tensor:
    """KL(π_old ‖ π) in each state, in closed form.    → (...)

        Categorical   Σ_a π_old(a) [ log π_old(a) − log π(a) ]
        Gaussian      Σ_i [ log σ_i − log σ_old,i + (σ_old,i² + (μ_old,i − μ_i)²) / 2σ_i² − ½ ]"""
    assert old.mode.shape == new.mode.shape
    if isinstance(old, Categorical):
        return (old.logprobs.exp() * (old.logprobs - new.logprobs)).sum(-1)
    squares = (2 * old.log_std).exp() + (old.mode - new.mode).square()
    return (new.log_std - old.log_std + 0.5 * squares / (2 * new.log_std).exp() - 0.5).sum(-1)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float | None = None
               ) -> Tensor:
    """½ mean (V − R)²; if clipped, ½ mean max[(V − R)², (V_old + clip(V − V_old, ±ε) − R)²].

    (M,) each → scalar. [PPO eq. 9, with a ½.] Clipping is not in the paper."""
    assert values.shape == old_values.shape == returns.shape
    if clip_coef is None:
        return 0.5 * F.mse_loss(values, returns)
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return 0.5 * torch.max((values - returns).square(), (clipped - returns).square()).mean()


# ── 6. Update [specific] ──────────────────────────────────────────────────────────────────────────
def flat_gradient(scalar: Tensor, parameters: list[nn.Parameter], **options: bool) -> Tensor:
    """∇_θ of a scalar as one vector, of all P parameters.    → (P,)"""
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters, **options)])


def fisher_vector_product(kl_gradient: Tensor, parameters: list[nn.Parameter], v: Tensor
                          ) -> Tensor:
    """F v, where F = ∇²_θ mean KL(π_old ‖ π) at π_old.    (P,) → (P,) [TRPO app. C]

        F v = ∇_θ [ (∇_θ KL)ᵀ v ]

    so F itself, P × P, is never built. kl_gradient: ∇_θ KL with its graph (create_graph=True). At
    π_old the KL and its gradient are zero, but the gradient's derivative is not: that is F."""
    return flat_gradient(kl_gradient @ v, parameters, retain_graph=True)


def conjugate_gradient(matvec: Callable[[Tensor], Tensor], b: Tensor, iters: int) -> Tensor:
    """x with A x ≈ b, for symmetric positive definite A given by matvec(v) = A v.    (P,) → (P,)

    residual = b − A x. Each direction d has dᵀA d' = 0 with all d' before it, so no step undoes
    another. Stops early at ‖residual‖ ≤ 1e-5 ‖b‖, b = 0 included, and where dᵀA d ≤ 0."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    residual_sq = residual @ residual
    for _ in range(iters):
        if residual_sq <= 1e-10 * (b @ b):
            break
        product = matvec(direction)
        curvature = direction @ product
        if curvature <= 0:
            break
        length = residual_sq / curvature
        x = x + length * direction
        residual = residual - length * product
        previous_sq = residual_sq
        residual_sq = residual @ residual
        direction = residual + residual_sq / previous_sq * direction
    return x


@torch.no_grad()
def line_search(loss_and_kl: Callable[[], tuple[Tensor, Tensor]], parameters: list[nn.Parameter],
                full_step: Tensor, loss_before: Tensor, args: Args) -> tuple[float, Tensor, Tensor]:
    """Moves the parameters by αʲ · full_step, α = --backtrack-coef, with the first j = 0, 1, 2 … at
    which KL ≤ δ = args.target_kl and the loss, −mean[ρÂ], is below loss_before (--no-line-search:
    j = 0). If no j will do, the parameters are restored, bit for bit. Returns αʲ (0 if restored),
    and the policy loss and the KL where the parameters are now. [TRPO app. C]"""
    before = nn.utils.parameters_to_vector(parameters)
    for fraction in (args.backtrack_coef**j for j in range(args.backtrack_iters)):
        nn.utils.vector_to_parameters(before + fraction * full_step, parameters)
        loss, kl = loss_and_kl()
        if not args.line_search or (kl <= args.target_kl and loss < loss_before):
            return fraction, loss, kl
    nn.utils.vector_to_parameters(before, parameters)
    return 0.0, *loss_and_kl()  # measured again: KL 0; NaN if the policy was broken before


def policy_update(agent: Agent, batch: Batch, args: Args) -> dict[str, Tensor | float]:
    """θ ← θ + αʲ √(2δ / xᵀFx) x,  (F + damping I) x ≈ g,  j from the line search. [TRPO app. C]

    A small step s gains about gᵀs and has a KL of about ½ sᵀFs. Of all s with that KL, the one
    along F⁻¹g, the natural gradient, gains most. The full step (j = 0) has ½ sᵀFs = δ; often it is
    shortened once, as its KL is a little above δ."""
    parameters = [p for name, p in agent.named_parameters()
                  if p.requires_grad and not name.startswith("critic")]
    with torch.no_grad():
        old = copy.deepcopy(agent).policy(batch.obs)  # a copy: steps change log σ itself

    def loss_and_kl() -> tuple[Tensor, Tensor]:
        policy = agent.policy(batch.obs)
        loss = policy_loss(policy.log_prob(batch.actions), batch.logprobs, batch.advantages)
        return loss, kl_divergence(old, policy).mean()

    loss_before, kl_before = loss_and_kl()
    gradient = -flat_gradient(loss_before, parameters, retain_graph=True)  # g
    kl_gradient = flat_gradient(kl_before, parameters, create_graph=True)
    fisher = functools.partial(fisher_vector_product, kl_gradient, parameters)
    # F, estimated from one batch, is nearly singular, so damping · I is added: --cg-damping times
    # F's curvature along g, gᵀFg / gᵀg. That grows as a Gaussian's σ falls; a constant would not.
    damping = args.cg_damping * (gradient @ fisher(gradient)) / (gradient @ gradient)
    x = conjugate_gradient(lambda v: fisher(v) + damping * v, gradient, args.cg_iters)
    curvature = x @ fisher(x)  # 0 if g = 0 (damping is NaN then, but not used): no step
    full_step = (2 * args.target_kl / curvature).sqrt() * x if curvature > 0 else 0 * x
    fraction, loss, kl = line_search(loss_and_kl, parameters, full_step, loss_before, args)
    return {"policy_loss": loss, "kl": kl, "step_fraction": fraction, "grad_norm": gradient.norm()}


def adam(state: list[Tensor], gradient: Tensor, lr: Tensor) -> list[Tensor]:
    """One step of Adam, β = (0.9, 0.999), ε = 1e-5, as torch.optim.Adam's.    [Kingma & Ba 2015]

        m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²,   θ ← θ − α m̂ / (√v̂ + ε)

    m̂ = m / c₁ and v̂ = v / c₂, as m and v start at 0: c ← βc + (1−β) is 1 − βᵏ after k steps.
    """
    theta, m, v, c1, c2 = state
    m, v = m.lerp(gradient, 1 - 0.9), v.lerp(gradient.square(), 1 - 0.999)
    c1, c2 = 0.9 * c1 + (1 - 0.9), 0.999 * c2 + (1 - 0.999)
    return [theta - lr * (m / c1) / ((v / c2).sqrt() + 1e-5), m, v, c1, c2]


def critic_step(optimizer: Optimizer, args: Args, state: list[Tensor], minibatch: list[Tensor]
                ) -> tuple[list[Tensor], list[Tensor]]:
    """One step of the critic on M transitions: state, [θ, m, v, c₁, c₂] → the next one, [‖∇‖]."""
    obs, values, returns = minibatch

    def losses(agent: Agent) -> tuple[Tensor, Tensor]:
        clip_value = args.clip_coef if args.clip_vloss else None
        loss = value_loss(agent.value(obs), values, returns, clip_value)
        return loss, loss.detach()  # to differentiate, to report

    gradient, _ = optimizer.gradient(losses, state[0])  # at θ, as by backward(), in one vector
    norm = gradient.norm()
    if args.max_grad_norm:
        gradient = gradient * (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    return adam(state, gradient, optimizer.lr), [norm]


def critic_update(agent: Agent, optimizer: Optimizer, batch: Batch, args: Args
                  ) -> dict[str, Tensor]:
    """Epochs of minibatch steps towards the returns; the policy's parameters are not touched."""
    step, norms = functools.partial(critic_step, optimizer, args), []
    data = batch.obs, batch.values, batch.returns
    for _ in range(args.critic_epochs):
        shuffled = torch.randperm(len(batch.obs)).to(batch.obs.device)
        minibatches = [x[shuffled].unflatten(0, (args.num_minibatches, -1)) for x in data]
        norms += optimizer.run(step, minibatches)  # for each: state, [norm] = step(state, it)
    return {"critic_grad_norm": torch.cat(norms).mean()}


def update(agent: Agent, optimizer: Optimizer, batch: Batch, args: Args) -> dict[str, float]:
    """One step of the policy within the trust region, then the critic's fit; returns metrics."""
    # not in the paper: δ falls with the learning rate, or the policy would never settle
    delta = args.target_kl * float(optimizer.lr / args.learning_rate)
    metrics = policy_update(agent, batch, replace(args, target_kl=delta))
    metrics |= critic_update(agent, optimizer, batch, args)
    with torch.no_grad():
        policy, errors = agent.policy(batch.obs), batch.returns - batch.values
        ratio = (policy.log_prob(batch.actions) - batch.logprobs).exp()
        metrics |= {
            "value_loss": value_loss(agent.value(batch.obs), batch.values, batch.returns),
            "entropy": policy.entropy().mean(),
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
            "explained_variance": 1 - errors.var() / batch.returns.var(),  # of the values before
        }
    return {name: float(value) for name, value in metrics.items()}


# ── 7. Training [specific] ────────────────────────────────────────────────────────────────────────
def train(args: Args) -> Agent:
    """The whole algorithm. `run` keeps count, logs and saves; with --resume it continues."""
    device, envs = start(args), make_envs(args)
    agent = Agent(envs, args).to(device)
    optimizer = Optimizer(agent, args, vectors=2, numbers=2, prefix="critic")  # for m, v; c₁, c₂
    run = Run(args, agent, optimizer)
    obs, _ = envs.reset(seed=(args.seed, run.step))
    for step in run.iterations():  # environment steps taken so far
        lr = args.learning_rate * (1 - step / args.total_timesteps if args.anneal_lr else 1)
        optimizer.lr.fill_(lr)
        rollout, obs = collect_rollout(agent, envs, obs, args)
        batch = make_batch(agent, rollout, args)
        metrics = update(agent, optimizer, batch, args)
        agent.obs_stats.update(batch.obs)  # only now, as the statistics are part of π_old
        run.log(rollout, metrics | {"learning_rate": lr})
    run.finish()
    return agent


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# Part II: the run. From here on all five scripts are the same; nothing of the algorithm is below.
# ══════════════════════════════════════════════════════════════════════════════════════════════════
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium[classic-control,box2d,mujoco]>=1.4,<2", "numpy",
#                 "tyro>=1.0", "tensorboard>=2.21", "wandb", "tqdm", "moviepy", "pytest"]
# ///
import copy
import gc
import io
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_type_hints

import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

ALGORITHM = Path(globals().get("__file__", "notebook")).stem


@dataclass
class Args(Hyperparameters):
    cuda: bool = True  # use the GPU when there is one
    torch_deterministic: bool = True  # only deterministic PyTorch operations
    compile: bool = False  # compile the steps, if all have one size: starts later, runs faster
    exp_name: str = ALGORITHM  # name of the experiment
    run_dir: str = "runs"  # where run directories are made
    track: bool = False  # log to Weights & Biases too
    wandb_project_name: str = "policy-gradients"  # W&B project
    wandb_entity: str | None = None  # W&B user or team
    resume: str | None = None  # go on with the run in this run directory
    evaluate: str | None = None  # evaluate the run in this run directory; no training
    eval_episodes: int = 10  # episodes of the evaluation after training; 0: none
    eval_deterministic: bool = True  # evaluate the policy's mode; off: sample as in training
    capture_video: bool = False  # film the evaluation episodes


class UserError(Exception):
    """Something the user can mend: `main` prints it as one line and exits with code 2."""


def say(text: str) -> None:
    """print, whatever stdout is: unable to encode a letter, or a pipe that is not read any more."""
    try:
        print(text, flush=True)
    except UnicodeError:
        print(ascii(text), flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")


say_once = functools.cache(say)  # one line per text
freeze_once = functools.cache(gc.freeze)  # only the first call does anything


def in_one_line(failed: threading.ExceptHookArgs) -> None:
    """Say what ended a thread of TensorBoard's, such as a full disk, instead of a traceback."""
    if "tensorboard" in f"{type(failed.thread).__module__} {failed.thread}":
        say_once(f"TensorBoard has stopped: {failed.exc_value}")
    else:
        threading.__excepthook__(failed)


# ── 8. Environments [shared: all five] ────────────────────────────────────────────────────────────
class Envs(gym.vector.SyncVectorEnv):
    """N environments, stepped in turn. A step that ends an episode returns the next one's first
    observation; infos then has "final_obs" (N, O), s_{t+1} as it was, and "episodes", (return,
    length) of each that ended. Actions in [−1, 1] are stretched to the bounds, then clipped."""

    def __init__(self, env_fns: list[Callable[[], gym.Env]]):
        super().__init__(env_fns, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        space = self.single_action_space
        if isinstance(space, gym.spaces.Box):
            bounded = (space.low > -1e9) & (space.high < 1e9)  # some have 3e38 for no bound
            low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
            self.scale, self.shift = (high - low) / 2, (high + low) / 2  # 1 and 0 if not bounded

    def reset(self, *, seed=None, options=None) -> tuple[np.ndarray, dict]:
        """seed: a list, one for each environment, or one for all, from which each gets its own."""
        self.returns, self.lengths = [0.0] * self.num_envs, [0] * self.num_envs
        if not isinstance(seed, list):
            own = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
            seed = [None] * self.num_envs if seed is None else own
        return np.stack([self.first_obs(i, s) for i, s in enumerate(seed)]), {}

    def first_obs(self, i: int, seed: int | None = None) -> np.ndarray:
        """Reset environment i."""
        result, space = self.envs[i].reset(seed=seed), self.single_observation_space
        try:
            obs, _ = result
            obs = np.array(obs, float)
        except (TypeError, ValueError):
            obs = np.array(0.0)
        if obs.shape != space.shape:
            raise UserError(f"{self.envs[i]}: reset returned {str(result)[:200]}, not (an "
                            f"observation of shape {space.shape}, a dict)")
        return obs

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        space, n = self.single_action_space, self.num_envs
        if isinstance(space, gym.spaces.Discrete):
            actions = actions + space.start
        else:
            actions = (actions * self.scale + self.shift).clip(space.low, space.high)
        obs, rewards, infos = np.empty(self.observation_space.shape), np.empty(n), {}
        terminated, truncated = np.empty(n, bool), np.empty(n, bool)
        for i, env in enumerate(self.envs):
            result = env.step(actions[i])
            try:
                obs[i], reward, terminated[i], truncated[i], _ = result
                reward = reward if isinstance(reward, float) else float(np.asarray(reward).item())
                as_declared = np.shape(result[0]) == obs[i].shape  # and not only broadcast to it
            except (TypeError, ValueError):
                as_declared = False
            if not as_declared:
                raise UserError(f"{env}: step returned {str(result)[:200]}, not (an observation of "
                                f"shape {obs[i].shape}, a number, two bools, a dict)")
            rewards[i] = reward
            self.returns[i] += float(reward)  # np.float64 cannot be in a checkpoint
            self.lengths[i] += 1
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            infos["final_obs"] = obs.copy()
            infos["episodes"] = [(self.returns[i], self.lengths[i]) for i in ended]
        for i in ended:
            self.returns[i], self.lengths[i] = 0.0, 0
            obs[i] = self.first_obs(i)
        return obs, rewards, terminated, truncated, infos


def make_envs(args: Args, video_folder: Path | None = None) -> gym.vector.VectorEnv:
    """N environments; UserError if there are none of that name, or none for these scripts."""
    def make_env() -> gym.Env:
        filming = {"render_mode": "rgb_array"} if video_folder else {}
        env = gym.make(args.env_id, disable_env_checker=True, **filming)
        for space, kinds, dims in ((env.observation_space, "fiu", (0, 1, 2)),
                                   (env.action_space, "f", (1,))):
            real = (isinstance(space, gym.spaces.Box) and space.dtype.kind in kinds
                    and len(space.shape) in dims)
            if not (real or isinstance(space, gym.spaces.Discrete)):
                raise UserError(f"--env-id {args.env_id}: {space} is neither a vector of real "
                                "numbers nor Discrete (images: variant cnn of variants.py)")
        if video_folder:
            env = gym.wrappers.RecordVideo(env, str(video_folder),
                                           fps=env.metadata.get("render_fps") or 30,
                                           episode_trigger=lambda n: n < args.eval_episodes)
        flat = len(env.observation_space.shape) == 1
        return env if flat else gym.wrappers.FlattenObservation(env)  # Discrete becomes one-hot

    try:
        if "mujoco" in str(gym.registry.get(args.env_id)) and find_spec("mujoco"):
            import mujoco  # its warnings end in the simulated time: each would be another one
            mujoco.set_mju_user_warning(lambda text: say_once(text.split(" Time = ")[0]))
        return Envs([make_env] * args.num_envs)
    except (gym.error.Error, ImportError, ValueError) as error:
        reason = (str(error).splitlines() or ["it cannot be made"])[0]
        raise UserError(f"--env-id {args.env_id}: {reason}") from error


# ── 9. Statistics and speed [shared: all five] ────────────────────────────────────────────────────
class RunningStats(nn.Module):
    """Mean and standard deviation of all data so far, in float64 buffers, saved with the agent."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        for name, value in (("mean", 0.0), ("var", 1.0), ("std", 1.0)):
            self.register_buffer(name, torch.full(shape, value, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Merge a batch, (n, *shape): the moments of a whole from those of its two parts."""
        var, mean = torch.var_mean(batch.to(self.mean), 0, correction=0)
        self.count.add_(len(batch))
        share, delta = len(batch) / self.count, mean - self.mean
        self.mean.add_(share * delta)
        self.var.add_(share * (var - self.var + (1 - share) * delta.square()))
        self.std.copy_((self.var + 1e-16).sqrt())


def in_numpy(module: nn.Module) -> Callable:
    """The same module for arrays: its methods, on arrays for parameters, and layers in NumPy."""
    if isinstance(module, nn.Sequential):
        layers = [in_numpy(layer) for layer in module]
        return lambda x: functools.reduce(lambda y, layer: layer(y), layers, x)
    if isinstance(module, nn.Linear):
        weight, bias = module.weight.detach().numpy().T, module.bias.detach().numpy()
        return lambda x: x @ weight + bias
    if isinstance(module, nn.Tanh):
        return np.tanh
    if isinstance(module, nn.ReLU):
        return lambda x: np.maximum(x, 0)
    twin, tensors = object.__new__(type(module)), module._parameters | module._buffers
    vars(twin).update(vars(module) | {name: x.detach().numpy() for name, x in tensors.items()}
                      | {name: in_numpy(child) for name, child in module._modules.items()})
    return twin


@torch.no_grad()
def actor_of(agent: Agent, obs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that acts as agent.policy(obs).sample(), (N, O) → (N,) or (N, A), on the CPU: in
    NumPy, whose calls cost less for a few rows; or in PyTorch, if at first the two differ."""
    actor = copy.deepcopy(agent).cpu() if next(agent.parameters()).is_cuda else agent
    seed, results = int(torch.randint(2**32, ())), []
    if not hasattr(agent, "acts_in_numpy"):  # at the first rollout of a run, and for all of it
        agent.acts_in_numpy = False
        mismatches = AttributeError, RuntimeError, TypeError, ValueError
        with suppress(*mismatches), torch.random.fork_rng(devices=[]):
            for policy in actor.policy(torch.from_numpy(obs)), in_numpy(actor).policy(obs):
                np.random.seed(seed)
                results.append([*policy, policy.sample()])
            agent.acts_in_numpy = all(np.allclose(x, y, 1e-3, 1e-3) for x, y in zip(*results))
    np.random.seed(seed)  # from PyTorch's generator, whose state is in the checkpoint
    if agent.acts_in_numpy:
        twin = in_numpy(actor)
        return lambda obs: twin.policy(obs).sample()
    return torch.no_grad()(lambda obs: actor.policy(torch.from_numpy(obs)).sample().numpy())


class Optimizer:
    """All parameters in one vector θ, of which they become views, and what an optimiser remembers.

    state is what a function such as minibatch_step makes the next one of: θ, then so many vectors
    like θ and so many numbers, all 0 at first. lr is the learning rate."""

    def __init__(self, agent: Agent, args: Args, vectors: int, numbers: int, prefix: str = ""):
        self.agent, self.compile, self.fast = agent, args.compile, None
        self.named = {name: p for name, p in agent.named_parameters()
                      if p.requires_grad and name.startswith(prefix)}
        theta = nn.utils.parameters_to_vector(self.named.values()).detach()
        nn.utils.vector_to_parameters(theta, self.named.values())
        self.lr = theta.new_zeros(())
        self.state = [theta, *(torch.zeros_like(theta) for _ in range(vectors)),
                      *(theta.new_zeros(()) for _ in range(numbers))]  # no two share memory
        type(agent).forward = lambda agent, f: f(agent)  # functional_call can call forward only

    def gradient(self, losses: Callable, theta: Tensor) -> tuple[Tensor, Tensor]:
        """losses(agent) is (loss, other). Returns ∇_θ loss, as loss.backward() would leave it in
        .grad, but in one vector; and other."""
        if torch.compiler.is_compiling():
            def at(theta: Tensor) -> tuple[Tensor, Tensor]:
                pieces = theta.split([p.numel() for p in self.named.values()])
                weights = {n: x.view(p.shape) for x, (n, p) in zip(pieces, self.named.items())}
                return torch.func.functional_call(self.agent, weights, (losses,))
            return torch.func.grad(at, has_aux=True)(theta)
        loss, other = losses(self.agent)  # its parameters are views of θ
        parts = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True,
                                    materialize_grads=True)
        return torch.cat([x.flatten() for x in parts]), other

    def store(self, state: list[Tensor]) -> None:
        """Make this the state, which stays where it is in memory."""
        if len(state) != len(self.state):
            raise ValueError(f"{len(state)} parts for a state of {len(self.state)}: does the "
                             "optimiser return all that `vectors` and `numbers` in train count?")
        for old, new in zip(self.state, state):
            old.copy_(new.view(old.shape))  # copy_ alone would stretch a number to a vector

    def once(self, step: Callable, minibatch: list[Tensor]) -> list[Tensor]:
        """state, out = step(state, minibatch)    → out"""
        state, out = step(self.state, minibatch)
        self.store(state)
        return out

    def run(self, step: Callable, minibatches: list[Tensor]) -> list[Tensor]:
        """for minibatch in minibatches: state, out = step(state, minibatch)    → the outs, stacked

        minibatches are (number, M, …) each, of the same sizes in all calls. On a GPU the loop is
        recorded once, as a CUDA graph; on a CPU it is compiled, with --compile. Both keep the first
        call's step, so what changes later must be a tensor that is filled in place."""
        def loop(minibatches: list[Tensor]) -> list[Tensor]:
            outs = [self.once(step, minibatch) for minibatch in zip(*minibatches)]
            return [torch.stack(x) for x in zip(*outs)]

        if self.lr.is_cuda:
            self.fast = self.fast or self.recorded(loop, [x.clone() for x in minibatches])
        elif self.compile:
            try:
                self.fast = self.fast or self.compiled(step, len(minibatches[0]))
                return self.fast(minibatches)
            except Exception as error:  # a compiler can raise anything
                self.fast, self.compile = None, False
                reason = " ".join(str(error).split())[:200]
                say("--compile: it failed (if not at once: did a plain number change?), so the "
                    f"run goes on without it: {reason}")
        return (self.fast or loop)(minibatches)

    def compiled(self, step: Callable, number: int) -> Callable:
        """The loop over `number` minibatches, to be compiled at its first call."""
        def one(state: list[Tensor], minibatches: list[Tensor]) -> tuple[list, list]:
            """As scan does it for a single minibatch, where scan costs more than it saves."""
            state, out = step(state, [x[0] for x in minibatches])
            return state, [x[None] for x in out]

        say("--compile: compiling, for about half a minute")
        from torch._higher_order_ops import scan
        steps = one if number == 1 else lambda *x: scan(step, *x)
        steps = torch.compile(steps, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
        return functools.partial(self.once, steps)

    def recorded(self, loop: Callable, buffers: list[Tensor]) -> Callable:
        """loop as a CUDA graph: its kernels, recorded on buffers that stay."""
        graph, before = torch.cuda.CUDAGraph(), [x.clone() for x in self.state]
        loop(buffers)  # what is recorded must have run before
        self.store(before)
        with torch.cuda.graph(graph):
            outs = loop(buffers)

        def replay(minibatches: list[Tensor]) -> list[Tensor]:
            for buffer, x in zip(buffers, minibatches):
                buffer.copy_(x)
            graph.replay()
            return [x.clone() for x in outs]
        return replay


# ── 10. The run directory [shared: all five] ──────────────────────────────────────────────────────
class Run:
    """A run directory (args.json, progress.csv, TensorBoard, checkpoint.pt) and a progress bar."""

    progress = {"iteration": 0, "step": 0, "seconds": 0.0, "episodes": 0, "csv_size": 0,
                "unlogged": [], "last_returns": []}  # attributes at the start, and a checkpoint's

    def __init__(self, args: Args, agent: Agent, optimizer: Optimizer):
        self.args, self.agent, self.optimizer, self.stopped = args, agent, optimizer, False
        vars(self).update(copy.deepcopy(self.progress))
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
        self.dir = Path(args.resume or Path(args.run_dir, re.sub(r"[^\w.+=-]", "-", name)))
        self.dir = self.dir.expanduser().resolve()
        facts = {"device": torch.cuda.get_device_name() if optimizer.lr.is_cuda else "cpu",
                 "python": sys.version.split()[0]}
        facts |= {name: sys.modules[name].__version__ for name in
                  ("torch", "numpy", "gymnasium", "mujoco") if name in sys.modules}
        try:
            self.open({"algorithm": ALGORITHM} | asdict(args) | facts)
        except OSError as error:
            flag = "run-dir" if args.resume is None else "resume"
            raise UserError(f"--{flag}, {self.dir}: {error.strerror or error}") from error
        say(f"{ALGORITHM}, {args.env_id}, seed {args.seed}; "
            + " ".join(map(" ".join, facts.items())))
        say(f"steps {self.step:,} to {args.total_timesteps:,}, at least {args.batch_size:,} an "
            f"iteration, in {self.dir}")
        self.bar = tqdm(total=args.total_timesteps, initial=self.step, file=sys.stdout,
                        dynamic_ncols=True, disable=None,  # None: if this is not a terminal
                        bar_format="{n:,}/{total:,} steps |{bar}| {elapsed}<{remaining}{postfix}")
        self.clock, self.saved, self.shown = time.perf_counter(), time.perf_counter(), self.step

    def open(self, settings: dict) -> None:
        """Open progress.csv, for one process at a time; restore; then write and open the rest."""
        if self.args.resume is None:
            self.dir.mkdir(parents=True)
        self.csv = (self.dir / "progress.csv").open("a", newline="")
        try:
            import fcntl
            fcntl.flock(self.csv, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.dir}: another process is at this run") from error
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks
        if self.args.resume is not None:
            checkpoint = restore(self.args, self.agent, self.optimizer)
            budget = self.args.total_timesteps
            vars(self).update(checkpoint["progress"])
            if budget < min(self.step, checkpoint["args"].total_timesteps):
                raise UserError(f"--total-timesteps {budget}: the run has taken {self.step} steps "
                                "already, so give more")
        written = (self.dir / "progress.csv").read_bytes()[:self.csv_size]
        self.csv_size = written.rfind(b"\n") + 1  # whole rows; later ones will come again
        self.csv.truncate(self.csv_size)
        (self.dir / "args.json").write_text(json.dumps(settings, indent=2, default=str))
        if self.args.track:
            import wandb
            try:
                wandb.init(project=self.args.wandb_project_name, entity=self.args.wandb_entity,
                           dir=self.dir.parent, name=self.dir.name, id=self.dir.name,
                           config=settings, resume="allow", sync_tensorboard=True)
            except wandb.errors.Error as error:
                raise UserError(f"--track: {error} (WANDB_MODE=offline: no account)") from error
        threading.excepthook = in_one_line
        self.tensorboard = SummaryWriter(str(self.dir), purge_step=self.step + 1)

    def iterations(self) -> Iterator[int]:
        """The number of steps taken so far, while another iteration fits into the budget; saves at
        the end and every 30 s. Ctrl-C, SIGTERM or SIGHUP end it after this iteration, a second
        Ctrl-C at once."""
        def stop(number, frame):
            if self.stopped and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped = True
            with suppress(OSError, AttributeError):  # there may be no terminal any more
                os.write(sys.stderr.fileno(), b"\nstopping after this iteration; Ctrl-C: at once\n")

        caught = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM") or s.name == "SIGHUP"
                  and signal.getsignal(s) != signal.SIG_IGN]  # which it is under nohup
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = {s: signal.signal(s, stop) for s in caught if in_main_thread}
        last_start = self.args.total_timesteps - self.args.batch_size
        try:
            while not self.stopped and self.step <= last_start:
                yield self.step
                if time.perf_counter() - self.saved > 30:
                    self.save()
            self.save()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def log(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Count an iteration; stop at NaN; write a row and TensorBoard.

        Iterations of fewer than 1,000 steps (in short runs: 1 %) share a row, with the last one's
        metrics, and means over all episodes that ended since the row before (empty if none)."""
        now, start, total = time.perf_counter(), self.step, self.args.total_timesteps
        self.iteration, self.step = self.iteration + 1, self.step + rollout.size
        self.seconds, self.clock = self.seconds + now - self.clock, now
        freeze_once()  # spares collections what a compiler has left: one of it would take 0.3 s
        check_finite(self.step, rollout._asdict() | metrics | {
            "obs_std": self.agent.obs_stats.std.cpu()})
        for at, episodic_return, length in rollout.episodes:
            self.scalar("charts/episodic_return", episodic_return, start + at)
            self.scalar("charts/episodic_length", length, start + at)
        self.episodes += len(rollout.episodes)
        self.unlogged += rollout.episodes
        self.last_returns = (self.last_returns + [e[1] for e in rollout.episodes])[-100:]
        spacing = max(1, min(1000, total // 100))
        if self.step // spacing == start // spacing and self.step <= total - self.args.batch_size:
            return
        row = {"iteration": self.iteration, "global_step": self.step,
               "seconds": round(self.seconds, 3), "episodes": self.episodes,
               "episodic_return": [e[1] for e in self.unlogged],
               "episodic_length": [e[2] for e in self.unlogged],
               "SPS": round(self.step / self.seconds), "return_100": self.last_returns, **metrics}
        for name in ("episodic_return", "episodic_length", "return_100"):
            row[name] = float(np.mean(row[name])) if row[name] else ""
        if not self.csv_size:
            print(*row, sep=",", file=self.csv)  # the names of the columns
        print(*row.values(), sep=",", file=self.csv, flush=True)
        self.csv_size, self.unlogged = self.csv.tell(), []
        for name in ("SPS", *metrics):
            group = "charts" if name in ("SPS", "learning_rate") else "losses"
            self.scalar(f"{group}/{name}", row[name], self.step)
        average = f"{row['return_100']:.1f}" if self.last_returns else "unknown"
        self.show(f"return {average}, {row['SPS']:,} SPS")

    def scalar(self, tag: str, value: float, step: int) -> None:
        with suppress(OSError):  # TensorBoard's failure alone must not end the run
            self.tensorboard.add_scalar(tag, value, step)

    def show(self, text: str) -> None:
        """The bar on a terminal, else a line at every 5 % of the run."""
        total = self.args.total_timesteps
        with suppress(OSError):
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(self.step - self.bar.n)
        if self.bar.disable and 20 * self.step // total > 20 * self.shown // total:
            say(f"step {self.step:,} of {total:,}: {text}")
            self.shown = self.step

    def save(self) -> None:
        """Tensors and plain values only; renamed into place: a crash leaves the last one whole."""
        flushing = threading.Thread(target=self.tensorboard.flush, name="tensorboard", daemon=True)
        flushing.start()
        flushing.join(timeout=10)  # if a full disk has ended the writer, flush may never return
        checkpoint, temporary = io.BytesIO(), self.dir / "checkpoint.tmp"
        torch.save({"algorithm": ALGORITHM, "args": asdict(self.args),
                    "progress": {name: getattr(self, name) for name in self.progress},
                    "agent": self.agent.state_dict(), "optimizer": self.optimizer.state,
                    "rng": torch.get_rng_state()}, checkpoint)
        try:
            temporary.write_bytes(checkpoint.getbuffer())
            os.replace(temporary, self.dir / "checkpoint.pt")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UserError(f"cannot write {self.dir}/checkpoint.pt: "
                            f"{error.strerror or error}") from error
        self.saved = time.perf_counter()

    def finish(self) -> None:
        """Evaluate, or after Ctrl-C say how to go on; close what is open."""
        for opened in (self.bar, self.tensorboard, self.csv):
            with suppress(OSError):
                opened.close()
        if self.stopped:
            say(f"stopped at step {self.step:,}; to go on: --resume {self.dir}")
        elif self.args.eval_episodes:
            try:
                returns = evaluate(self.agent, self.args, self.args.eval_episodes, self.dir)
            except Exception as error:
                raise UserError(f"the training is complete and saved in {self.dir}, but its "
                                f"evaluation failed: {type(error).__name__}: {error}") from error
            actions = "deterministic" if self.args.eval_deterministic else "sampled"
            text = json.dumps({"actions": actions, "returns": returns})
            (self.dir / "evaluation.json").write_text(text)
        if self.args.track:
            import wandb
            films = self.dir.glob("videos/*.mp4")
            wandb.log({f"videos/{film.stem}": wandb.Video(str(film)) for film in films})
            wandb.finish()


def check_finite(step: int, quantities: dict[str, Tensor | float]) -> None:
    """UserError that names the first quantity with a NaN or an infinity in it."""
    largest = {name: float(np.abs(np.asarray(quantities.get(name, 0.0))).max()) for name in
               ("obs", "next_obs", "rewards", "obs_std", "policy_loss", "value_loss", "approx_kl",
                "kl")}
    for name, value in largest.items():
        if not value < math.inf:
            advice = ("the environment returned it" if name in ("obs", "next_obs", "rewards") else
                      f"obs reach {largest['obs']:.0e} and rewards {largest['rewards']:.0e}; a "
                      "smaller --learning-rate or --target-kl may help")
            raise UserError(f"{name} is NaN or infinite by step {step:,} ({advice}): training "
                            "stops; what was saved before stays as it is")


def check_saved(checkpoint: dict) -> None:
    """ValueError, or any other, for what no run can have written."""
    for name, hint in get_type_hints(Args).items():
        value, kinds = getattr(checkpoint["args"], name), get_args(hint) or (hint,)
        integer = type(value) is int and float in kinds
        if not (integer or type(value) in kinds or value in kinds):  # a Literal's kinds are values
            raise ValueError(f"{name} is {value!r}")
    progress = checkpoint["progress"]
    if {n: type(x) for n, x in progress.items()} != {n: type(x) for n, x in Run.progress.items()}:
        raise ValueError("its counts are damaged")
    if not all(0 <= x < 2**53 for x in progress.values() if type(x) is not list):
        raise ValueError("its counts are damaged")
    np.array(progress["unlogged"], float).reshape(-1, 3)
    np.array(progress["last_returns"], float)


def restore(args: Args, agent: Agent | None = None, optimizer: Optimizer | None = None) -> dict:
    """The checkpoint of --resume or --evaluate; its state is put into what is given."""
    flag = "resume" if args.evaluate is None else "evaluate"
    run_dir = getattr(args, flag)
    try:
        if not run_dir:  # as from a shell variable that is not set
            raise ValueError("give a run directory")
        path = Path(run_dir, "checkpoint.pt").expanduser()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["algorithm"] != ALGORITHM:
            raise ValueError(f"a run of {checkpoint['algorithm']}.py, use that script")
        saved = checkpoint["args"] = Args(**checkpoint["args"])
        check_saved(checkpoint)
        if ":" in saved.env_id and saved.env_id != args.env_id:
            raise ValueError(f"its environment imports a module; if you trust that, add --env-id "
                             f"{saved.env_id!r}")
        for name in ("env_id", "activation", "norm_obs", "clip_obs", "norm_reward", "clip_reward"):
            old, new = getattr(saved, name), getattr(args, name)
            if agent and old != new:
                raise ValueError(f"its weights are of a run with {name} {old!r}, not {new!r}")
        if agent:
            agent.load_state_dict(checkpoint["agent"])
        if optimizer:
            optimizer.store(checkpoint["optimizer"])
            torch.set_rng_state(checkpoint["rng"])
        return checkpoint
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--{flag} {run_dir}: no usable checkpoint.pt: {reason}") from error


# ── 11. Evaluation and command line [shared: all five] ────────────────────────────────────────────
@torch.no_grad()
def evaluate(agent: Agent, args: Args, episodes: int, run_dir: Path | None = None) -> list[float]:
    """Raw returns of whole episodes with frozen statistics, played one after the other (the first
    to end out of several played at once would be the short ones). Prints mean ± std."""
    folder = Path(run_dir, "videos") if run_dir and args.capture_video else None
    envs, returns = make_envs(replace(args, num_envs=1), folder), []
    agent = copy.deepcopy(agent).cpu()
    obs, _ = envs.reset(seed=(args.seed, 2**31))  # not the episodes of the training
    longest = min(envs.envs[0].spec.max_episode_steps or 10_000, 100_000)
    for _ in range(episodes * longest):
        policy = agent.policy(torch.from_numpy(obs))
        actions = policy.mode if args.eval_deterministic else policy.sample()
        obs, *_, infos = envs.step(actions.numpy())
        returns += [episode[0] for episode in infos.get("episodes", ())]
        if len(returns) == episodes:
            break
    envs.close()
    how = "deterministic" if args.eval_deterministic else "sampled"
    missing = f" (of {episodes}: no more ended)" if len(returns) < episodes else ""
    say(f"evaluation, {len(returns)} episodes{missing}, {how} actions: "
        f"return {np.mean(returns or math.nan):.1f} ± {np.std(returns or math.nan):.1f}")
    return returns


def check_args(args: Args) -> None:
    """UserError for the first flag that cannot work, before anything is written."""
    limits = (dict.fromkeys(("gamma", "gae_lambda", "backtrack_coef"), (0, 1))
              | dict.fromkeys(("ent_coef", "vf_coef", "max_grad_norm", "cg_damping"), (0, 1e12))
              | dict.fromkeys(("clip_obs", "clip_reward"), (1e-12, math.inf))
              | {"seed": (0, 2**64 - 1), "eval_episodes": (0, 10**9), "log_std_init": (-99, 99)})
    for name, value in vars(args).items():
        low, high = limits.get(name, (1, 10**12) if type(value) is int else (1e-12, 1e12))
        if type(value) in (int, float) and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be from {low} to {high}")
    batch, parts = args.batch_size, getattr(args, "num_minibatches", None)
    wrong = {
        "--evaluate and --resume: give one of them": None not in (args.evaluate, args.resume),
        "--eval-episodes 0: --evaluate has nothing to play": (args.evaluate is not None
                                                              and not args.eval_episodes),
        f"--total-timesteps {args.total_timesteps}: less than one iteration of {batch} steps":
            batch > args.total_timesteps,
        f"--num-minibatches {parts}: must divide the batch of {batch} (--num-envs times "
        "--num-steps) into minibatches of 2 or more":
            parts and (batch % parts or batch // parts < 2),
        "--num-steps 1 and --num-envs 1: a batch of one step has no spread; raise either":
            batch == 1 and hasattr(args, "num_steps"),
        "--baseline group: compares the episodes of a round, so it needs --num-envs 2 or more":
            getattr(args, "baseline", "") == "group" and args.num_envs == 1,
        "--track: needs wandb (pip install wandb)": args.track and not find_spec("wandb"),
        "--capture-video: films the evaluation, so not with --eval-episodes 0":
            args.capture_video and not args.eval_episodes}
    for text in filter(wrong.get, wrong):
        raise UserError(text)
    if args.capture_video:
        check_film(args)


def check_film(args: Args) -> None:
    """UserError if a film of one step fails: better now than after the training."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            envs = make_envs(replace(args, num_envs=1, eval_episodes=1), Path(folder))
            envs.reset(seed=args.seed)
            envs.step(0 * envs.action_space.sample())
            envs.close()
            if not any(Path(folder).glob("*.mp4")):
                raise ValueError("no film came of it")
    except Exception as error:
        raise UserError(f"--capture-video: cannot film {args.env_id}: {error} (MuJoCo without a "
                        "display: MUJOCO_GL=egl or osmesa)") from error


def start(args: Args) -> torch.device:
    """Check the flags, seed the random number generators, choose the device."""
    check_args(args)
    torch.manual_seed(args.seed)
    random.seed(args.seed)  # this one and the next for environments that draw from them
    np.random.seed(args.seed % 2**32)
    torch.set_num_threads(1)  # networks of this size lose with more
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS is not deterministic
    torch.set_deterministic_debug_mode("error" if args.torch_deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and we never read it
    if args.cuda and not torch.cuda.is_available():
        say("--cuda: no usable GPU, so this runs on the CPU (--no-cuda: do not look for one)")
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


def main() -> None:
    """Flags; with --resume or --evaluate, the flags of that run, changed by those given now."""
    warnings.filterwarnings("once", message=".*out of date")  # Gymnasium's, at every gym.make
    for name in "stdout", "stderr":
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(getattr(sys, name), "reconfigure"):  # a code page without γ ends no run
            getattr(sys, name).reconfigure(errors="replace")
    given = [] if "ipykernel" in sys.modules else sys.argv[1:]  # a notebook's are not for us
    given = [re.sub(r"^(--[\w-]+=)?(\d+(?:\.\d+)?[eE]\+?\d\d?)$",
                    lambda m: f"{m[1] or ''}{float(m[2]):.15g}", flag)
             for flag in given]  # 1e6 is an integer, too
    try:
        args = tyro.cli(Args, args=given, description=(__doc__ or ALGORITHM).splitlines()[0])
        if args.resume is not None or args.evaluate is not None:
            saved = replace(restore(args)["args"], resume=None, evaluate=None)
            if args.evaluate is not None:  # some episodes and no film, unless told otherwise
                saved = replace(saved, capture_video=False, track=False, cuda=False,
                                eval_episodes=saved.eval_episodes or 10)
            args = tyro.cli(Args, args=given, default=saved)
        if args.evaluate is None:
            train(args)
            return
        start(args)
        agent = Agent(make_envs(args), args)
        restore(args, agent)
        evaluate(agent, args, args.eval_episodes, Path(args.evaluate).expanduser())
    except (UserError, ImportError, OSError) as error:
        text = f"{ALGORITHM}: {error}"  # one line, without what moves a terminal's cursor
        print("".join(c if c.isprintable() else " " for c in text), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
