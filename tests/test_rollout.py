"""Sections 3 and 8: environments, and the transitions that reach the update."""
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ACTOR_CRITIC, SCRIPTS, Count, Spaces, each, each_kind, register, setup

CONTINUOUS = [s for s in ACTOR_CRITIC if s.__name__ != "ppo_discrete"]


def stream(length, steps):
    """The transitions of a Count environment: (obs, reward, next_obs, end)."""
    for k in range(steps):
        episode, t = divmod(k, length)
        yield [episode, t], t + 1, [episode, t + 1], t + 1 == length


def rollouts(script, kind, n=3, **env):
    """n consecutive rollouts of T = 5 steps, joined, in two environments of lengths 3 and 4."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind, **env), num_steps=5)
    parts = []
    for _ in range(n):
        rollout, obs = script.collect_rollout(agent, envs, obs, args)
        parts.append(rollout)
    return parts, [torch.cat(x) for x in list(zip(*parts))[:6]]


@pytest.mark.parametrize("env", [{"ends": "terminated"}, {"ends": "truncated"}, {"ends": "both"},
                                 {"reuse": True}, {"dtype": np.float64}], ids=str)
@each_kind(ACTOR_CRITIC)
def test_every_transition_is_real(script, kind, env):
    """Three rollouts hold just the transitions that happened, with their rewards and ends.

    No step between episodes, next_obs is the true successor also at an end, flags are un-shifted,
    a rollout goes on where the last one stopped.
    """
    _, (obs, _, rewards, next_obs, terminated, done) = rollouts(script, kind, lengths=(3, 4), **env)
    ends = env.get("ends", "terminated")
    for i, length in enumerate((3, 4)):
        columns = zip(*stream(length, 15))
        real_obs, real_rewards, real_next_obs, real_done = map(torch.tensor, columns)
        assert torch.equal(obs[:, i], real_obs.double())
        assert torch.equal(next_obs[:, i], real_next_obs.double())
        assert torch.equal(rewards[:, i], real_rewards.double())
        assert torch.equal(done[:, i], real_done)
        assert torch.equal(terminated[:, i], real_done & (ends != "truncated"))


@each_kind(ACTOR_CRITIC)
def test_next_obs_is_the_next_step_s_obs(script, kind):
    """obs[t+1] is next_obs[t], unless the episode ended; then it is a first observation."""
    _, (obs, _, _, next_obs, _, done) = rollouts(script, kind, lengths=(3, 4))
    same = (obs[1:] == next_obs[:-1]).all(-1)
    assert torch.equal(same, ~done[:-1])
    assert (obs[1:][done[:-1]][:, 1] == 0).all()


@each_kind(ACTOR_CRITIC)
def test_types_and_shapes(script, kind):
    """float64 data (so that nothing of a large offset is lost), bool masks, time first."""
    (rollout, *_), _ = rollouts(script, kind, lengths=(3, 4), dtype=np.float64)
    assert rollout.obs.shape == rollout.next_obs.shape == (5, 2, 2)
    assert rollout.obs.dtype == rollout.next_obs.dtype == rollout.rewards.dtype == torch.float64
    assert rollout.terminated.dtype == rollout.done.dtype == torch.bool
    assert rollout.rewards.shape == rollout.done.shape == (5, 2)
    assert rollout.actions.shape == ((5, 2) if kind == "discrete" else (5, 2, 2))
    assert rollout.size == 10


@each_kind(ACTOR_CRITIC)
def test_episodes_are_counted_exactly(script, kind):
    """Each episode that ends appears once, in its rollout, with its step, raw return and length."""
    parts, _ = rollouts(script, kind, lengths=(3, 4))
    # N = 2: after step t both environments together have done 2 (t + 1)
    assert parts[0].episodes == [(6, 6.0, 3), (8, 10.0, 4)]
    assert parts[1].episodes == [(2, 6.0, 3), (6, 10.0, 4), (8, 6.0, 3)]
    assert parts[2].episodes == [(4, 6.0, 3), (4, 10.0, 4), (10, 6.0, 3)]


@each_kind(ACTOR_CRITIC)
def test_no_episode_ended(script, kind):
    """Without an end the list of episodes is empty."""
    parts, _ = rollouts(script, kind, n=1, lengths=(100,))
    assert parts[0].episodes == []


def test_seeds_differ():
    """No two environments share a seed, nor does a run with the next --seed or another stream."""
    script, env_id = SCRIPTS[0], register(Count)
    envs = script.make_envs(script.Args(env_id=env_id, num_envs=16))
    for seed in range(20):
        for stream in (0, 64):
            envs.reset(seed=(seed, stream))
    seeds = [seed for env in Count.built for seed in env.seeds]
    assert len(set(seeds)) == len(seeds) == 20 * 2 * 16


@each_kind(SCRIPTS)
def test_environments_get_their_seeds(script, kind):
    """train's reset gives every sub-environment its own seed; later resets do not repeat it."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind), num_envs=4)
    seeds = [env.seeds for env in Count.built]
    assert all(len(given) == 1 for given in seeds) and len({given[0] for given in seeds}) == 4
    envs.reset(seed=[5, 6, 7, 8])
    assert [env.seeds.pop() for env in Count.built] == [5, 6, 7, 8]
    envs.reset(seed=(args.seed, 0))
    assert [env.seeds.pop() for env in Count.built] == [given[0] for given in seeds]
    for _ in range(3):
        envs.step(envs.action_space.sample())
    assert all(env.seeds[1:] == [None] for env in Count.built)


@each_kind(SCRIPTS)
def test_make_envs(script, kind):
    """The autoreset mode is SAME_STEP; observations are float64 vectors."""
    args, envs, _, obs = setup(script, env_id=register(Count, kind=kind, dtype=np.float64))
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    assert obs.dtype == np.float64 and obs.shape == (2, 2)


@each_kind(SCRIPTS)
def test_kinds_of_observations(script, kind):
    """A Discrete observation becomes one-hot, a matrix becomes a vector."""
    action = gym.spaces.Discrete(2) if kind == "discrete" else gym.spaces.Box(-1, 1, (1,))
    *_, obs = setup(script, env_id=register(Spaces, obs=gym.spaces.Discrete(5), action=action))
    assert obs.shape == (2, 5) and ((obs == 0) | (obs == 1)).all() and (obs.sum(1) == 1).all()
    matrix = gym.spaces.Box(-1, 1, (2, 3))
    assert setup(script, env_id=register(Spaces, obs=matrix, action=action))[3].shape == (2, 6)


@pytest.mark.parametrize("low, high", [(-2.0, 2.0), (-1.0, 0.5)])
@each(CONTINUOUS)
def test_stored_action_is_the_sample(script, low, high):
    """Samples are stored unclipped; the environment gets them clipped, stretched to its bounds."""
    env_id = register(Count, kind="continuous", low=low, high=high, lengths=(3, 4))
    args, envs, agent, obs = setup(script, env_id=env_id, num_steps=50, log_std_init=1.0)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    received = np.stack([env.actions for env in Count.built], axis=1)  # (T, N, A)
    stored, bottom, top = rollout.actions.numpy(), np.full(2, low), np.array([high, high + 1])
    assert stored.min() < -1.5 and stored.max() > 1.5
    assert (received >= bottom).all() and (received <= top).all()
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    np.testing.assert_allclose(received, middle + half * stored.clip(-1, 1), atol=1e-5)


@pytest.mark.filterwarnings("error")
@each(CONTINUOUS)
def test_unbounded_actions_pass_unchanged(script):
    """Without finite bounds there is nothing to stretch to: the sample goes through, unwarned."""
    env_id = register(Count, kind="continuous", low=-np.inf, high=np.inf)
    args, envs, agent, obs = setup(script, env_id=env_id, log_std_init=1.0)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    received = np.stack([env.actions for env in Count.built], axis=1)
    np.testing.assert_allclose(received, rollout.actions.numpy())


@each(CONTINUOUS)
def test_half_bounded_actions_stay_in_bounds(script):
    """A space with a lower bound only: no action below it reaches the environment."""
    env_id = register(Count, kind="continuous", low=-0.5, high=np.inf)
    args, envs, agent, obs = setup(script, env_id=env_id, num_steps=50, log_std_init=1.0)
    script.collect_rollout(agent, envs, obs, args)
    assert np.min([env.actions for env in Count.built]) >= -0.5


def received(script, space, *actions):
    """What one environment with this action space gets for each of these actions."""
    envs = script.make_envs(script.Args(env_id=register(Spaces, action=space), num_envs=1))
    got = []
    envs.envs[0].unwrapped.step = lambda action: got.append(action) or (
        np.zeros(3, np.float32), 0.0, False, False, {})
    envs.reset()
    for action in actions:
        envs.step(np.array([action]))
    return got


@pytest.mark.filterwarnings("error")
@each(CONTINUOUS)
def test_extreme_actions_are_in_the_space(script):
    """Whatever the bounds, also after rounding; ±3e38 stands for no bound, not for a stretch."""
    generator = np.random.default_rng(0)
    for low, width in zip(generator.normal(size=20), generator.uniform(0.1, 9, 20)):
        space = gym.spaces.Box(low, low + width, (3,), np.float32)
        extremes = [np.full(3, extreme, np.float32) for extreme in (-5, 5)]
        assert all(space.contains(action) for action in received(script, space, *extremes))
    most = np.finfo(np.float32).max
    action, = received(script, gym.spaces.Box(-most, most, (3,)), np.float32([1, -2, 5]))
    np.testing.assert_array_equal(action, [1, -2, 5])


class Infos(Count):
    """Its infos are of another size and another kind in every environment."""

    def reset(self, **kwargs):
        obs, _ = super().reset(**kwargs)
        return obs, {"x": np.zeros(self.index + 1)}

    def step(self, action):
        *transition, _ = super().step(action)
        return *transition, {"x": np.zeros(self.index + 1), "y": {} if self.index else None}


@each_kind(ACTOR_CRITIC)
def test_infos_that_do_not_fit_together(script, kind):
    """Environments end together; what they report besides is left behind."""
    args, envs, agent, obs = setup(script, env_id=register(Infos, kind=kind, lengths=(3,)))
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    assert len(rollout.episodes) == 2 * (args.num_steps // 3)


@each([s for s in ACTOR_CRITIC if s.__name__ != "ppo_continuous"])
def test_discrete_actions_start_where_the_space_starts(script):
    """Discrete(3, start=5): indices are stored, the environment gets 5, 6, 7."""
    assert received(script, gym.spaces.Discrete(3, start=5), 0, 2, 1) == [5, 7, 6]


@each_kind(ACTOR_CRITIC)
def test_ratio_is_1_before_the_update(script, kind, monkeypatch):
    """log π_old of the batch is the log-probability each action had when it was taken.

    Also for actions far out of bounds, and with normalisation statistics that are not trivial.
    """
    env_id = register(Count, kind=kind, lengths=(3, 4))
    args, envs, agent, obs = setup(script, env_id=env_id, num_steps=40, log_std_init=1.0)
    agent.obs_stats.update(torch.randn(50, 2) * 3 + 1)
    taken, policy_of = [], script.Agent.policy

    def recording(self, obs):
        policy = policy_of(self, obs)
        taken.append((obs, policy))
        return policy

    monkeypatch.setattr(script.Agent, "policy", recording)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    monkeypatch.undo()
    acted = [policy for obs, policy in taken if isinstance(obs, np.ndarray)][1:]  # 0: the check
    assert len(acted) == 40 and len(taken) == 42
    at_the_time = torch.stack([type(policy)(*map(torch.from_numpy, policy)).log_prob(actions)
                               for policy, actions in zip(acted, rollout.actions)])
    batch = script.make_batch(agent, rollout, args)
    ratio = (batch.logprobs - at_the_time.flatten()).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
