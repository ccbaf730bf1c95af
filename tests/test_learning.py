"""Every script learns tasks whose optimum is known, and one that is not trivial."""
import numpy as np
import pytest
import torch
from conftest import SCRIPTS, OneStep, each, kinds, register, rows, trained

DISCRETE = [s for s in SCRIPTS if "discrete" in kinds(s)]
CONTINUOUS = [s for s in SCRIPTS if "continuous" in kinds(s)]
PPO_ONLY = {"num_envs": 8, "num_steps": 32, "num_minibatches": 8, "update_epochs": 4,
            "episodes_per_update": 64}


@each(DISCRETE)
def test_finds_the_best_arm(script, tmp_path):
    """Four arms that pay 0, 0.2, 1 and 0.5: the third is taken with probability above 0.9."""
    _, agent, _ = trained(script, tmp_path, env_id=register(OneStep, kind="discrete"),
                          total_timesteps=8192, learning_rate=3e-3, **PPO_ONLY)
    probability = agent.policy(torch.ones(1)).log_prob(torch.tensor(2)).exp().item()
    assert probability > 0.9


@each(CONTINUOUS)
def test_finds_the_target(script, tmp_path):
    """Reward −(a − 0.5)²: the mean comes within 0.1 of 0.5, and the policy narrows."""
    _, agent, _ = trained(script, tmp_path, env_id=register(OneStep, kind="continuous"),
                          total_timesteps=16384, learning_rate=3e-3, **PPO_ONLY)
    policy = agent.policy(torch.ones(1))
    assert policy.mode.item() == pytest.approx(0.5, abs=0.1)
    assert agent.log_std.item() < agent.args.log_std_init - 0.3
