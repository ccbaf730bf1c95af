"""Our scripts with something changed: model solutions of assignments, and contestants of run.py.

    python benchmarks/variants.py ppo_continuous beta --env-id Hopper-v4  # and its other flags

Each function changes a script's module. Where a class or a whole function is another one, it puts
that in its place; where a line or two of a function differ, `edit` and `insert` show these lines.
"""
import importlib
import inspect
import linecache
import math
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERMITE = torch.tensor(np.array(np.polynomial.hermite_e.hermegauss(32)), dtype=torch.float32)


def edit(script: ModuleType, function: str, old: str, new: str) -> None:
    """Change the text of a function, as one would in a copy of the script: `old`, which must stand
    there once, becomes `new`. For changes in the middle of a function that stays as it is."""
    text = inspect.getsource(getattr(script, function))
    if text.count(old) != 1:
        raise LookupError(f"{function} in {script.__name__}.py should have once: {old}")
    text, file = text.replace(old, new), f"<{function}, changed>"
    linecache.cache[file] = len(text), None, text.splitlines(True), file  # what tracebacks show
    exec(compile(text, file, "exec"), vars(script))


def insert(script: ModuleType, function: str, below: str, *lines: str) -> None:
    """Put lines below the one line of a function that has `below` in it, indented as that is."""
    text = inspect.getsource(getattr(script, function))
    found = [line for line in text.splitlines() if below in line]
    line = found[0] if len(found) == 1 else below  # which edit then refuses
    indent = line[:len(line) - len(line.lstrip())]
    edit(script, function, line, "\n".join([line, *(indent + new for new in lines)]))


def time_limits_terminate(script: ModuleType) -> None:
    """Take a time limit for a termination, as if nothing came after it."""
    gae = script.compute_gae
    script.compute_gae = lambda rewards, values, next_values, terminated, done, *rest: gae(
        rewards, values, next_values, done, done, *rest)


def adam(script: ModuleType) -> None:
    """Adam with momentum, as in the other scripts, where A2C has RMSprop."""

    class WithMomentum(script.Optimizer):
        def __init__(self, agent, args, vectors, numbers, prefix=""):
            super().__init__(agent, args, vectors + 1, numbers + 1, prefix)  # m, c₁

    script.Optimizer = WithMomentum
    script.rmsprop = importlib.import_module("ppo_discrete").adam


def uncorrected_rmsprop(script: ModuleType) -> None:
    """RMSprop as the A3C paper has it: v is not corrected, so the early steps are longer."""

    def rmsprop(state: list[Tensor], gradient: Tensor, lr: Tensor) -> list[Tensor]:
        theta, v, c = state
        v = v.lerp(gradient.square(), 1 - 0.99)
        return [theta - lr * gradient / (v.sqrt() + 1e-5), v, c]

    script.rmsprop = rmsprop


def annealed_std(script: ModuleType) -> None:
    """Whatever an update makes of log σ, after it log σ is on a line from --log-std-init to −2.5.

    How much of the run is over it sees from the learning rate, so not with --no-anneal-lr.
    """
    update, last = script.update, -2.5

    def update_and_anneal(agent, optimizer, batch, args):
        metrics, first = update(agent, optimizer, batch, args), args.log_std_init
        done = 1 - float(optimizer.lr) / args.learning_rate + len(batch.obs) / args.total_timesteps
        agent.log_std.data.fill_(first + done * (last - first))
        return metrics

    script.update = update_and_anneal


def squashed_gaussian(script: ModuleType) -> None:
    """a = tanh(u), u Gaussian: inside the bounds without clipping, as in SAC (arXiv 1801.01290)."""
    gaussian = script.Gaussian

    class SquashedGaussian(NamedTuple):
        mean: Tensor  # (..., A) of u
        log_std: Tensor  # (A,) of u

        @property
        def mode(self) -> Tensor:
            return self.mean.tanh()

        def sample(self) -> Tensor:
            u = gaussian(*self).sample()
            return np.tanh(u) if isinstance(u, np.ndarray) else u.tanh()

        def log_prob(self, actions: Tensor) -> Tensor:
            """log π(a|s) = log N(u; μ, σ²) − Σ_i log(1 − a_i²)    (..., A) → (...)"""
            actions = actions.clamp(-1 + 1e-6, 1 - 1e-6)
            log_slope = (1 - actions.square()).log()
            return gaussian(*self).log_prob(actions.atanh()) - log_slope.sum(-1)

        def entropy(self) -> Tensor:
            """H(π) = H(u) + Σ_i E[log(1 − tanh² u_i)], the mean by Gauss–Hermite quadrature"""
            nodes, weights = HERMITE.to(self.mean.device)
            u = self.mean[..., None] + self.log_std.exp()[..., None] * nodes
            log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 − tanh² u), stable
            return gaussian(*self).entropy() + (log_slope @ weights / weights.sum()).sum(-1)

    script.Gaussian = SquashedGaussian


class ScaledBeta(NamedTuple):
    """Independent Beta distributions stretched to [−1, 1]. Chou et al. 2017, PMLR 70."""
    outputs: Tensor  # (..., 2A), from which α and β come

    @property
    def beta(self) -> torch.distributions.Beta:
        parameters = 1 + F.softplus(torch.as_tensor(self.outputs))  # above 1: a hump inside
        return torch.distributions.Beta(*parameters.chunk(2, -1), validate_args=False)

    @property
    def mode(self) -> Tensor:
        return 2 * self.beta.mode - 1

    def sample(self) -> Tensor:
        alpha, beta = self.beta.concentration1, self.beta.concentration0
        actions = 2 * np.random.beta(alpha.detach().cpu(), beta.detach().cpu()) - 1
        actions = actions.astype(np.float32)
        if isinstance(self.outputs, np.ndarray):
            return actions
        return torch.from_numpy(actions).to(self.outputs)

    def log_prob(self, actions: Tensor) -> Tensor:
        inside = ((actions + 1) / 2).clamp(1e-6, 1 - 1e-6)
        return (self.beta.log_prob(inside) - math.log(2)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.beta.entropy() + math.log(2)).sum(-1)


def beta(script: ModuleType) -> None:
    """A Beta distribution, whose two parameters per action are the actor's outputs."""

    class BetaAgent(script.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            del self.log_std
            inputs, actions = self.actor[0].in_features, self.actor[-1].out_features
            self.actor = self.network(inputs, 2 * actions, gain=0.01)

        def policy(self, obs: Tensor) -> ScaledBeta:
            return ScaledBeta(self.actor(self.normalise(obs)))

    script.Agent = BetaAgent


def kl_divergence(old: NamedTuple, new: NamedTuple) -> Tensor:
    """KL(π_old ‖ π) in each state, in closed form, as in trpo.py.    → (...)

        Categorical   Σ_a π_old(a) [ log π_old(a) − log π(a) ]
        Gaussian      Σ_i [ log σ_i − log σ_old,i + (σ_old,i² + (μ_old,i − μ_i)²) / 2σ_i² − ½ ]
    """
    assert old.mode.shape == new.mode.shape
    if hasattr(old, "logprobs"):
        return (old.logprobs.exp() * (old.logprobs - new.logprobs)).sum(-1)
    squares = (2 * old.log_std).exp() + (old.mode - new.mode).square()
    return (new.log_std - old.log_std + 0.5 * squares / (2 * new.log_std).exp() - 0.5).sum(-1)


def surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_coef: float
              ) -> Tensor:
    """−mean[ρÂ]; clip_coef is not used.    (M,) each → scalar    [PPO eq. 6]"""
    assert logprobs.shape == old_logprobs.shape == advantages.shape
    return -((logprobs - old_logprobs).exp() * advantages).mean()


def with_policy_in_batch(script: ModuleType) -> None:
    """One more column in Batch: all parameters of π_old(·|s), stacked along the last axis."""
    insert(script, "make_batch", "logprobs = agent.policy(obs).log_prob(actions)",
           "old_policy = torch.stack(torch.broadcast_tensors(*agent.policy(obs)), -1)")
    edit(script, "make_batch", "advantages, returns)", "advantages, returns, old_policy)")
    edit(script, "minibatch_step", "returns = minibatch", "returns, old_policy = minibatch")
    script.Batch = namedtuple("Batch", [*script.Batch._fields, "old_policy"])


def kl_penalty(script: ModuleType) -> None:
    """PPO that pays for its distance to π_old instead of clipping the ratio. [PPO §4, eq. 8]

        L = −mean[ρÂ] + β mean KL(π_old ‖ π)
        after an update:  β ← 2β if KL > 1.5 d_targ,  β ← β/2 if KL < d_targ / 1.5

    Asked for by RL Bootcamp 2024 ("Trust Region Methods III") and HSE ("Problem Statement"). The KL
    is exact, so the batch keeps π_old itself, as a copy: an update overwrites log σ. β is a
    buffer of the agent: it is saved, and --compile sees a tensor change where it would take a
    Python number for a constant. Its bounds are not in the paper; a β of 0 could not be doubled.
    """
    update = script.update

    @dataclass
    class Args(script.Args):
        d_targ: float = 0.01  # KL of an update that β is adapted to bring about

    class Agent(script.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            self.register_buffer("beta", torch.ones(()))

    def update_and_adapt(agent, optimizer, batch, args):
        metrics = update(agent, optimizer, batch, args)
        if metrics["kl"] > 1.5 * args.d_targ:
            agent.beta.mul_(2).clamp_(max=1e3)
        elif metrics["kl"] < args.d_targ / 1.5:
            agent.beta.div_(2).clamp_(min=1e-3)
        return metrics

    with_policy_in_batch(script)
    insert(script, "minibatch_step", "loss = policy_loss(",
           "old = type(policy)(*old_policy.unbind(-1))",
           "loss = loss + agent.beta * kl_divergence(old, policy).mean()")
    insert(script, "diagnostics", '"approx_kl": ', '"beta": agent.beta,',
           '"kl": kl_divergence(type(policy)(*batch.old_policy.unbind(-1)), policy).mean(),')
    script.Args, script.Agent, script.update = Args, Agent, update_and_adapt
    script.policy_loss, script.kl_divergence = surrogate, kl_divergence


def dual_clip(script: ModuleType) -> None:
    """Dual-clip PPO: a bound for bad actions, too. [Ye et al. 2020, arXiv 1912.09729]

        L = −mean[ max(min(ρÂ, clip(ρ, 1−ε, 1+ε) Â), cÂ) ]  where Â < 0,  else PPO's;  c = 3

    Where Â < 0, PPO's minimum is ρÂ, however large ρ is, so a few actions that have become much
    likelier can rule a gradient step; beyond ρ = c their gradient is zero here. Asked for by
    Sogang ("Advanced PPO Techniques"; its name there, PPO-M, is elsewhere PPO's without extras).
    """
    largest_ratio = 3.0  # c

    def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_coef: float
                    ) -> Tensor:
        assert logprobs.shape == old_logprobs.shape == advantages.shape
        ratio = (logprobs - old_logprobs).exp()
        clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
        objective = torch.min(ratio * advantages, clipped * advantages)
        bounded = torch.max(objective, largest_ratio * advantages)
        return -torch.where(advantages < 0, bounded, objective).mean()

    script.policy_loss = policy_loss


def shared_features(script: ModuleType) -> None:
    """Actor and critic share their hidden layers, the features; each has a last layer of its own.

        ∇_features L = ∇ policy loss + c_v ∇ value loss,    c_v = --vf-coef

    Asked for by RL Bootcamp 2025 (SB3's share_features_extractor) and Sogang ("Actor-Critic
    Architecture"). With two networks c_v hardly matters, as Adam and RMSprop undo a factor (but for
    gradient clipping); here it decides whom the features serve, and a large value loss "overwhelms"
    the policy's. Metrics: policy_gradient and value_gradient, the norms of the terms, before an
    update. The features have one name, as tensors with two names do not compile in a2c.py.
    """
    update = script.update

    class Agent(script.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            self.features = self.actor[:-1]
            self.actor, self.critic = self.actor[-1:], self.critic[-1:]

        def normalise(self, obs: Tensor) -> Tensor:
            """The features of the normalised observation: what policy and value start from."""
            return self.features(super().normalise(obs))

    def update_and_compare(agent, optimizer, batch, args):
        logprobs, values = agent.policy(batch.obs).log_prob(batch.actions), agent.value(batch.obs)
        losses = {"policy_gradient": -(logprobs * batch.advantages).mean(),  # as PPO's at ρ = 1
                  "value_gradient": args.vf_coef * 0.5 * F.mse_loss(values, batch.returns)}
        norms = {}
        for name, loss in losses.items():
            gradient = torch.autograd.grad(loss, list(agent.features.parameters()))
            norms[name] = float(torch.cat([x.flatten() for x in gradient]).norm())
        return update(agent, optimizer, batch, args) | norms

    script.Agent, script.update = Agent, update_and_compare


def state_std(script: ModuleType) -> None:
    """σ depends on the state: the actor has 2A outputs, μ(s) and log σ(s).

        π(a|s) = Π_i N(a_i; μ_i(s), σ_i(s)²),    log σ(s) clipped to [−5, 2]

    So the policy can explore in one state and be exact in another (as in A3C, arXiv 1602.01783, and
    SAC, arXiv 1801.01290). RL Bootcamp 2025 names it beside the free log σ of our scripts; SB3's
    "state-dependent exploration" goes further: there the noise itself is a function of the state.
    """

    class Agent(script.Agent):
        """Two networks, for μ(s) and log σ(s) and for V(s)."""

        def __init__(self, envs, args):
            super().__init__(envs, args)
            if not isinstance(envs.single_action_space, gym.spaces.Box):
                raise script.UserError(f"--env-id {args.env_id}: state_std needs real-valued "
                                       f"actions, not {envs.single_action_space}")
            del self.log_std
            inputs, actions = self.actor[0].in_features, self.actor[-1].out_features
            self.actor = self.network(inputs, 2 * actions, gain=0.01)
            nn.init.constant_(self.actor[-1].bias[actions:], args.log_std_init)

        def policy(self, obs: Tensor) -> NamedTuple:
            outputs = self.actor(self.normalise(obs))
            actions = outputs.shape[-1] // 2
            return script.Gaussian(outputs[..., :actions], outputs[..., actions:].clip(-5, 2))

    script.Agent = Agent


def falling_entropy(script: ModuleType) -> None:
    """The weight of the entropy bonus falls linearly, from --ent-coef to 0.

        c_e(step) = c_e (1 − step / total)

    Explore first, settle later: the bonus of UW ("Some additional tricks") and RL Bootcamp 2024
    ("Maximum Entropy"), and the entropy that falls slowly of Sogang ("Common PPO Issues"). c_e is a
    tensor, filled in place, like optimizer.lr: compiled code and CUDA graphs would keep the first
    value of a Python number. Each iteration fills it from `step`, so it needs no checkpoint.
    """
    check_args = script.check_args

    def check(args):
        check_args(args)
        if not args.ent_coef:
            raise script.UserError("falling_entropy: needs --ent-coef, the weight at the start")

    script.check_args = check
    insert(script, "train", "optimizer = Optimizer(",
           "optimizer.ent_coef = torch.zeros_like(optimizer.lr)")
    insert(script, "train", "optimizer.lr.fill_(lr)",
           "optimizer.ent_coef.fill_(args.ent_coef * (1 - step / args.total_timesteps))")
    edit(script, "train", '"learning_rate": lr',
         '"learning_rate": lr, "ent_coef": float(optimizer.ent_coef)')
    step = "minibatch_step" if hasattr(script, "minibatch_step") else "gradient_step"
    edit(script, step, "loss - args.ent_coef", "loss - optimizer.ent_coef")


class ImageNetwork(nn.Module):
    """Layers for images, called with flat observations.    (..., H·W·C) → (..., outputs)"""

    def __init__(self, shape: tuple[int, int, int], layers: nn.Sequential):
        super().__init__()
        self.shape, self.layers = shape, layers

    def forward(self, obs: Tensor) -> Tensor:
        images = obs.reshape(-1, *self.shape)  # (n, H, W, C), as the environment flattened them
        outputs = self.layers(images.movedim(-1, 1))  # PyTorch wants (n, C, H, W)
        return outputs.view(*obs.shape[:-1], -1)


def cnn(script: ModuleType) -> None:
    """A small convolutional network for images, H × W × C, such as MinAtar's 10 × 10 × 4.

        image / largest value → 16 filters of 3 × 3 → ReLU → the two hidden layers of before

    Sogang and UW ("Learning from High Dimensional Observations") go on to images. make_envs refuses
    them, but need not: whatever is not a vector it flattens, and ImageNetwork puts the image
    together again. Three traps: the environment's channels are the last axis and PyTorch's the
    first, so reshaping to (C, H, W) would mix pixels without an error; make_batch calls the
    networks with (T, N, …), Conv2d wants one batch axis; and to standardise each pixel by itself
    would make one shape look different at each place. Large images are dear.
    """

    class Agent(script.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            space = getattr(envs.envs[0], "env", envs.envs[0]).observation_space  # unflattened
            if len(space.shape) != 3 or not np.isfinite(space.high).all():
                raise script.UserError(f"--env-id {args.env_id}: cnn needs images with bounds (Box "
                                       f"of height, width, channels), not {space}")
            self.shape, self.largest = space.shape, float(space.high.max())
            self.actor = self.image_network(self.actor[-1].out_features, gain=0.01)
            self.critic = self.image_network(1, gain=1.0)

        def image_network(self, outputs: int, gain: float) -> ImageNetwork:
            height, width, channels = self.shape
            convolution = nn.Conv2d(channels, 16, kernel_size=3)
            if self.args.ortho_init:
                nn.init.orthogonal_(convolution.weight, math.sqrt(2))
                nn.init.zeros_(convolution.bias)
            dense = self.network(16 * (height - 2) * (width - 2), outputs, gain)
            return ImageNetwork(self.shape, nn.Sequential(convolution, nn.ReLU(), nn.Flatten(),
                                                          *dense))

        def normalise(self, obs: Tensor) -> Tensor:
            obs = obs / self.largest
            return obs.float() if isinstance(obs, Tensor) else obs.astype(np.float32)

    edit(script, "make_envs", '"fiu", (0, 1, 2)', '"fiub", (0, 1, 2, 3)')  # b: MinAtar's bool
    script.Agent = Agent


class Distillation(nn.Module):
    """A random network f that stays as it is, a predictor f̂ that learns it, and the running std of
    the discounted sums of f̂'s errors, which go on over the ends of episodes."""

    def __init__(self, target: nn.Module, predictor: nn.Module, stats: nn.Module):
        super().__init__()
        self.target, self.predictor = target.requires_grad_(False), predictor
        self.stats, self.error_sum = stats, 0.0

    def error(self, obs: Tensor) -> Tensor:
        """mean_k (f̂_k(s) − f_k(s))², for normalised observations.    (..., O) → (...)"""
        return (self.predictor(obs) - self.target(obs)).square().mean(-1)

    def rewards(self, obs: Tensor, gamma: float) -> Tensor:
        """(T, N, O) → (T, N): updates the std, divides by it."""
        errors, sums = self.error(obs), []
        for errors_t in errors:
            self.error_sum = errors_t + gamma * self.error_sum
            sums.append(self.error_sum)
        self.stats.update(torch.cat(sums))
        return errors / self.stats.std


def rnd(script: ModuleType) -> None:
    """Random network distillation: new states pay. [Burda et al. 2018, arXiv 1810.12894]

        r = r_environment (scaled) + c_i · i,  i = mean (f̂(s') − f(s'))² / std,  c_i = --rnd-coef

    f̂ is trained on the states visited, so its error is small where the agent has often been. From
    Sogang ("PPO with Curiosity"). The reward changes in make_batch only: the log has the returns of
    the environment. f is not in θ, as Optimizer takes what requires a gradient. Simpler than the
    paper: one value function for both rewards, so novelty after an episode's end does not count;
    and f̂'s gradient is part of the norm that --max-grad-norm bounds.
    """

    @dataclass
    class Args(script.Args):
        rnd_coef: float = 0.5  # c_i, weight of the intrinsic reward (the paper: 2 and 1)

    class Agent(script.Agent):
        def __init__(self, envs, args):
            super().__init__(envs, args)
            inputs = self.actor[0].in_features
            target, predictor = (self.network(inputs, 64, gain=1.0) for _ in range(2))
            self.distillation = Distillation(target, predictor, script.RunningStats(()))

    insert(script, "make_batch", "rewards = agent.scale_rewards(",
           "next_obs = rollout.next_obs.to(device)",
           "novelty = agent.distillation.rewards(agent.normalise(next_obs), args.gamma)",
           "rewards = rewards + args.rnd_coef * novelty.cpu()")
    edit(script, "make_batch", "advantages, returns)", "advantages, returns, next_obs)")
    edit(script, "minibatch_step", "returns = minibatch", "returns, next_obs = minibatch")
    insert(script, "minibatch_step", "loss = policy_loss(",
           "loss = loss + agent.distillation.error(agent.normalise(next_obs)).mean()")
    insert(script, "diagnostics", '"approx_kl": ', '"prediction_error": '
           "agent.distillation.error(agent.normalise(batch.next_obs)).mean(),")
    script.Batch = namedtuple("Batch", [*script.Batch._fields, "next_obs"])
    script.Args, script.Agent = Args, Agent


SCRIPTS = ("reinforce", "a2c", "ppo_discrete", "ppo_continuous", "trpo")
PPO = ("ppo_discrete", "ppo_continuous")
FITS = {  # variant: the scripts it is for
    time_limits_terminate: ("a2c", *PPO, "trpo"),
    adam: ("a2c",),
    uncorrected_rmsprop: ("a2c",),
    annealed_std: ("ppo_continuous",),
    squashed_gaussian: ("ppo_continuous",),
    beta: ("ppo_continuous",),
    kl_penalty: PPO,
    dual_clip: PPO,
    shared_features: ("a2c", *PPO),
    state_std: ("reinforce", "a2c", "ppo_continuous", "trpo"),
    falling_entropy: ("reinforce", "a2c", *PPO),
    cnn: ("ppo_discrete",),
    rnd: PPO,
}
VARIANTS = {variant.__name__: variant for variant in FITS}


def mistake(name: str, variant: str) -> str | None:
    """What is wrong with this choice, if anything is."""
    if name not in SCRIPTS:
        return f"script {name!r}: must be one of {', '.join(SCRIPTS)}"
    if variant not in VARIANTS:
        return f"variant {variant!r}: must be one of {', '.join(VARIANTS)}"
    scripts = FITS[VARIANTS[variant]]
    return None if name in scripts else f"{variant} does not fit {name}: for {', '.join(scripts)}"


def main() -> None:
    name, variant, *flags = sys.argv[1:] + [""] * (3 - len(sys.argv))
    name, root = name.removesuffix(".py"), Path(__file__).resolve().parent.parent
    error = mistake(name, variant)
    try:
        if error is None:
            sys.path.insert(0, str(root))
            script = importlib.import_module(name)
            VARIANTS[variant](script)
    except LookupError as changed:
        error = changed
    if error:
        print(f"variants.py: {error}", file=sys.stderr)
        sys.exit(2)
    named = {"--exp-name", "--resume", "--evaluate"} & {flag.split("=")[0] for flag in flags}
    sys.argv = [script.__file__, *flags]
    if not named:  # or its runs would look like those of the script
        sys.argv.insert(1, f"--exp-name={name}+{variant}")
    script.main()


if __name__ == "__main__":
    main()
