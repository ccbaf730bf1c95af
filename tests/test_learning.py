"""Every script learns tasks whose optimum is known, and one that is not trivial."""
import pytest
import torch
from conftest import SCRIPTS, OneStep, each, kinds, register, rows, trained

DISCRETE = [s for s in SCRIPTS if "discrete" in kinds(s)]
CONTINUOUS = [s for s in SCRIPTS if "continuous" in kinds(s)]
SIZES = {"num_envs": 8, "num_steps": 32, "num_minibatches": 8, "update_epochs": 4,
            "episodes_per_update": 64}
CARTPOLE = {  # settings of each script
    "ppo_discrete": {"num_steps": 128, "num_minibatches": 8, "update_epochs": 8}}
PENDULUM = {
    "ppo_continuous": {"num_steps": 128, "num_minibatches": 16, "update_epochs": 10}}


@each(DISCRETE)
def test_finds_the_best_arm(script, tmp_path):
    """Four arms that pay 0, 0.2, 1 and 0.5: the third is taken with probability above 0.9."""
    _, agent, _ = trained(script, tmp_path, env_id=register(OneStep, kind="discrete"),
                          total_timesteps=8192, learning_rate=3e-3, **SIZES)
    probability = agent.policy(torch.ones(1)).log_prob(torch.tensor(2)).exp().item()
    assert probability > 0.9


@each(CONTINUOUS)
def test_finds_the_target(script, tmp_path):
    """Reward −(a − 0.5)²: the mean comes within 0.1 of 0.5, and the policy narrows."""
    _, agent, _ = trained(script, tmp_path, env_id=register(OneStep, kind="continuous"),
                          total_timesteps=16384, learning_rate=3e-3, **SIZES)
    policy = agent.policy(torch.ones(1))
    assert policy.mode.item() == pytest.approx(0.5, abs=0.1)
    assert agent.log_std.item() < agent.args.log_std_init - 0.3


@each([s for s in DISCRETE if s.__name__ in CARTPOLE])
def test_cartpole(script, tmp_path):
    """65,536 steps (7 s): the last 100 average above 400 (seeds 1 to 3: 500), as does the mode."""
    args, agent, run = trained(script, tmp_path, env_id="CartPole-v1", total_timesteps=65536,
                               learning_rate=1e-3, num_envs=8, **CARTPOLE[script.__name__])
    assert float(rows(run)[-1]["return_100"]) > 400
    assert sum(script.evaluate(agent, args, 10)) / 10 > 450


@each([s for s in CONTINUOUS if s.__name__ in PENDULUM])
def test_inverted_pendulum(script, tmp_path):
    """40,960 steps (10 s): seeds 1 to 3 average 285 to 308 over the last 100; the mode gets 1000.

    A random policy falls after about 6 steps.
    """
    pytest.importorskip("mujoco")
    args, agent, run = trained(script, tmp_path, env_id="InvertedPendulum-v5", num_envs=8,
                               total_timesteps=40960, learning_rate=1e-3,
                               **PENDULUM[script.__name__])
    assert float(rows(run)[-1]["return_100"]) > 150
    assert sum(script.evaluate(agent, args, 10)) / 10 > 800
