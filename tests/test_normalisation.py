"""Section 2: running statistics of observations and rewards, kept in the agent."""
import copy

import numpy as np
import pytest
import torch
from conftest import (
    ACTOR_CRITIC,
    SCRIPTS,
    Count,
    OneStep,
    each,
    each_kind,
    learn,
    make_optimizer,
    register,
    setup,
    trained,
)


def count_setup(script, kind, **changes):
    env_id = register(Count, kind=kind, lengths=(3, 4))
    return setup(script, env_id=env_id, num_steps=10, num_minibatches=2, **changes)


def discounted_returns(rewards, done, gamma):
    """R_t = r_t + γ R_{t−1}, anew with every episode, as plain loops.    (T, N)"""
    result = np.zeros_like(rewards)
    for i in range(rewards.shape[1]):
        total = 0.0
        for t in range(len(rewards)):
            total = rewards[t, i] + gamma * total
            result[t, i] = total
            total = 0.0 if done[t, i] else total
    return result


def some_rewards(T=200, N=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 3.0, (T, N)).astype(np.float32), rng.random((T, N)) < 0.1


@pytest.mark.parametrize("offset, scale", [(0.0, 1.0), (1e4, 2.0), (-3.0, 1e-3), (0.0, 1e-6),
                                           (1.7e9, 1.0)])
@each(SCRIPTS)
def test_running_stats(script, offset, scale):
    """After batches of several sizes: the mean and variance of all the data."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(offset, scale, (n, 3)) + k * scale for k, n in enumerate((7, 1, 500, 64))]
    stats = script.RunningStats((3,))
    for batch in batches:
        stats.update(torch.from_numpy(batch))
    data = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, data.mean(0), rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(stats.var, data.var(0), rtol=2e-3)
    np.testing.assert_allclose(stats.std, data.std(0), rtol=1e-3)
    assert stats.count == len(data)


@each(SCRIPTS)
def test_running_stats_of_a_constant(script):
    """A feature that never changes has variance 0 and does not divide by zero."""
    stats = script.RunningStats((1,))
    stats.update(torch.full((10, 1), 5.0))
    stats.update(torch.full((10, 1), 5.0))
    assert stats.mean == 5 and stats.var == 0 and 0 < stats.std < 1e-3


@each_kind(SCRIPTS)
def test_policy_and_value_take_raw_observations(script, kind):
    """(obs − mean) / std, clipped to ± clip_obs, happens inside policy and value."""
    args, _, agent, _ = count_setup(script, kind, clip_obs=3.0)
    data = torch.randn(1000, 2) * torch.tensor([2.0, 5.0]) + torch.tensor([10.0, -4.0])
    agent.obs_stats.update(data)
    obs = torch.tensor([[10.0, -4.0], [12.0, 1.0], [1000.0, -1000.0]])
    inside = ((obs - data.mean(0)) / data.std(0, correction=0)).clamp(-3, 3)
    assert inside[2].tolist() == [3, -3]
    policy, expected = agent.policy(obs), agent.actor(inside)
    if kind == "discrete":
        torch.testing.assert_close(policy.logprobs, expected.log_softmax(-1), atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(policy.mode, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(agent.value(obs), agent.critic(inside)[:, 0], atol=1e-4, rtol=0)


@each_kind(SCRIPTS)
def test_no_norm_obs(script, kind):
    """--no-norm-obs: observations reach the networks as they are."""
    _, _, agent, _ = count_setup(script, kind, norm_obs=False)
    agent.obs_stats.update(torch.randn(100, 2) + 7)
    obs = torch.tensor([[100.0, -50.0]])
    torch.testing.assert_close(agent.value(obs), agent.critic(obs)[:, 0])
    torch.testing.assert_close(agent.normalise(obs), obs)


@each_kind(ACTOR_CRITIC)
def test_frozen_within_a_rollout(script, kind):
    """Collecting a rollout changes nothing in the agent."""
    args, envs, agent, obs = count_setup(script, kind)
    before = copy.deepcopy(agent.state_dict())
    script.collect_rollout(agent, envs, obs, args)
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())


@each_kind(ACTOR_CRITIC)
def test_one_update_per_rollout_from_real_observations(script, kind):
    """After each update the statistics are those of all observations acted upon so far."""
    args, envs, agent, obs = count_setup(script, kind)
    optimizer, seen = make_optimizer(script, agent, args), []
    for iteration in range(3):
        rollout, obs = script.collect_rollout(agent, envs, obs, args)
        learn(script, agent, optimizer, rollout, args)
        seen.append(rollout.obs.flatten(0, 1).numpy())
        data = np.concatenate(seen)
        np.testing.assert_allclose(agent.obs_stats.mean, data.mean(0), rtol=1e-5)
        np.testing.assert_allclose(agent.obs_stats.var, data.var(0), rtol=1e-4)
        assert agent.obs_stats.count == len(data) == (iteration + 1) * 20


@each_kind(ACTOR_CRITIC)
def test_reward_scaling(script, kind):
    """Rewards are divided by the std of the discounted return; no mean is subtracted."""
    args, _, agent, _ = count_setup(script, kind, gamma=0.9)
    rewards, done = some_rewards()
    scaled = agent.scale_rewards(torch.from_numpy(rewards), torch.from_numpy(done))
    std = np.sqrt(discounted_returns(rewards, done, 0.9).var() + 1e-8)
    np.testing.assert_allclose(scaled, rewards / std, rtol=1e-4)


@each_kind(ACTOR_CRITIC)
def test_reward_scaling_carries_over_rollouts(script, kind):
    """Two rollouts one after the other give the statistics of one long rollout."""
    args, _, agent, _ = count_setup(script, kind, gamma=0.9)
    rewards, done = some_rewards()
    for part in (slice(0, 70), slice(70, 200)):
        agent.scale_rewards(torch.from_numpy(rewards[part]), torch.from_numpy(done[part]))
    returns = discounted_returns(rewards, done, 0.9)
    assert agent.return_stats.mean.item() == pytest.approx(returns.mean(), rel=1e-4)
    assert agent.return_stats.var.item() == pytest.approx(returns.var(), rel=1e-4)


@each_kind(ACTOR_CRITIC)
def test_reward_scaling_clips(script, kind):
    """Scaled rewards stay within ± clip_reward."""
    args, _, agent, _ = count_setup(script, kind, clip_reward=0.5)
    rewards, done = some_rewards()
    scaled = agent.scale_rewards(torch.from_numpy(rewards), torch.from_numpy(done))
    assert scaled.max() == 0.5 and scaled.min() == -0.5


@each_kind(ACTOR_CRITIC)
def test_no_norm_reward(script, kind):
    """--no-norm-reward: rewards stay as they are, however large."""
    args, _, agent, _ = count_setup(script, kind, norm_reward=False)
    rewards = torch.tensor([[100.0], [-50.0]])
    assert torch.equal(agent.scale_rewards(rewards, torch.zeros(2, 1).bool()), rewards)


@each_kind(ACTOR_CRITIC)
def test_batch_has_scaled_rewards_and_the_rollout_raw_ones(script, kind):
    """The update learns from scaled rewards; the rollout and its episodes keep raw numbers."""
    args, envs, agent, obs = count_setup(script, kind, gae_lambda=0.0, gamma=0.0)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    raw = rollout.rewards.clone()
    batch = script.make_batch(agent, rollout, args)
    assert torch.equal(rollout.rewards, raw)
    assert {episode[1] for episode in rollout.episodes} == {6.0, 10.0}
    # γ = 0: the critic's target is the scaled reward itself, and the discounted return the raw one
    expected = (raw / raw.std(correction=0)).flatten().float()
    torch.testing.assert_close(batch.returns, expected)


@each_kind(SCRIPTS)
def test_statistics_are_saved_with_the_agent(script, kind):
    """state_dict carries both sets of statistics, and loading restores them."""
    args, envs, agent, _ = count_setup(script, kind)
    agent.obs_stats.update(torch.randn(100, 2) * 3 + 1)
    agent.return_stats.update(torch.randn(100) * 3 + 1)
    other = script.Agent(envs, args)
    other.load_state_dict(agent.state_dict())
    for name in ("obs_stats", "return_stats"):
        for buffer in ("mean", "var", "std", "count"):
            ours, loaded = (getattr(getattr(a, name), buffer) for a in (agent, other))
            assert torch.equal(ours, loaded) and not torch.equal(ours, torch.zeros_like(ours))


@each_kind(SCRIPTS)
def test_statistics_change_after_the_update(script, kind, tmp_path, monkeypatch):
    """They stay from acting to the last gradient step, as they are part of π_old. Then they take
    each step of the rollout once."""
    counts = {"collect_rollout": [], "make_batch": [], "update": []}

    def noting(name, function):
        def call(agent, *rest):
            counts[name].append(float(agent.obs_stats.count))
            return function(agent, *rest)
        return call

    for name in counts:
        monkeypatch.setattr(script, name, noting(name, getattr(script, name)))
    _, agent, _ = trained(script, tmp_path, env_id=register(OneStep, kind=kind))
    acting = counts["collect_rollout"]
    assert len(acting) > 1 and acting == counts["make_batch"] == counts["update"]
    per_iteration = {after - before for before, after in zip(acting, acting[1:])}
    assert per_iteration == {acting[1]} and agent.obs_stats.count == len(acting) * acting[1]
