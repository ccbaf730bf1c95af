"""Our scripts with one thing changed, for comparison: what a suite of run.py calls a variant.

    python benchmarks/variants.py ppo_continuous beta --env-id Hopper-v4  # and its other flags
"""
import importlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HERMITE = torch.tensor(np.array(np.polynomial.hermite_e.hermegauss(32)), dtype=torch.float32)


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


VARIANTS = {f.__name__: f for f in (time_limits_terminate, adam, uncorrected_rmsprop, annealed_std,
                                    squashed_gaussian, beta)}


def main() -> None:
    name, variant, *flags = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    script = importlib.import_module(name)
    VARIANTS[variant](script)
    sys.argv = [script.__file__, *flags]
    script.main()


if __name__ == "__main__":
    main()
