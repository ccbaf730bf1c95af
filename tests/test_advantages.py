"""Section 4: generalised advantage estimation and what an update learns from."""
import pytest
import torch
from conftest import ACTOR_CRITIC, Constant, each, each_kind, register, setup

GAMMA, LAMBDA = 0.9, 0.8


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def mask(*values):
    return torch.tensor(values, dtype=torch.bool).unsqueeze(1)


def random_data(T=40, N=5, seed=0):
    """Random rewards, values and ends; some steps terminate, some truncate, some do both."""
    g = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, T, N, generator=g, dtype=torch.float64)
    terminated = torch.rand(T, N, generator=g) < 0.15
    done = terminated | (torch.rand(T, N, generator=g) < 0.15)
    return rewards, values, next_values, terminated, done


@each(ACTOR_CRITIC)
def test_lecture_example(script):
    """Sogang's three steps: δ = 0.95, 0.95, 0.5 and Â = 2.04755, 1.355, 0.5."""
    advantages = script.compute_gae(
        column(1, 1, 1), column(0.5, 0.5, 0.5), column(0.5, 0.5, 0), mask(0, 0, 0), mask(0, 0, 0),
        gamma=0.9, gae_lambda=0.9)
    torch.testing.assert_close(advantages, column(2.04755, 1.355, 0.5))


@each(ACTOR_CRITIC)
def test_ends_by_hand(script):
    """Two environments with a termination, a truncation, both at once, and the rollout's cut.

    γ = 0.9, λ = 0.5, so γλ = 0.45. V is 10 where the data starts, 20 where it leads to.
    Environment 0: termination at t=1; environment 1: truncation at t=0, both at t=2.
    """
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    values, next_values = torch.full((3, 2), 10.0), torch.full((3, 2), 20.0)
    terminated = torch.tensor([[0, 0], [1, 0], [0, 1]]).bool()
    done = torch.tensor([[0, 1], [1, 0], [0, 1]]).bool()
    # δ: bootstrap r + 18 − 10, termination r − 10
    # env 0: δ = 9, −7, 13;   env 1: δ = 10, 12, −4
    expected = torch.tensor([[9 + 0.45 * -7, 10], [-7, 12 + 0.45 * -4], [13, -4]])
    advantages = script.compute_gae(rewards, values, next_values, terminated, done, 0.9, 0.5)
    torch.testing.assert_close(advantages, expected)


@each(ACTOR_CRITIC)
def test_definition_as_a_sum(script):
    """Â_t = Σ_l (γλ)^l δ_{t+l}, up to and including the step that ends the episode."""
    rewards, values, next_values, terminated, done = random_data()
    advantages = script.compute_gae(rewards, values, next_values, terminated, done, GAMMA, LAMBDA)
    for i in range(rewards.shape[1]):
        for t in range(len(rewards)):
            expected, weight = 0.0, 1.0
            for k in range(t, len(rewards)):
                bootstrap = 0.0 if terminated[k, i] else GAMMA * next_values[k, i]
                expected += weight * (rewards[k, i] + bootstrap - values[k, i])
                weight *= GAMMA * LAMBDA
                if done[k, i]:
                    break
            assert advantages[t, i].item() == pytest.approx(float(expected), abs=1e-5)


@each(ACTOR_CRITIC)
def test_lambda_0_is_the_td_error(script):
    """λ = 0: Â = r + γ V(s') − V(s), without V(s') after a termination."""
    rewards, values, next_values, terminated, done = random_data()
    advantages = script.compute_gae(rewards, values, next_values, terminated, done, GAMMA, 0.0)
    expected = rewards + GAMMA * torch.where(terminated, 0.0, next_values) - values
    torch.testing.assert_close(advantages, expected)


@each(ACTOR_CRITIC)
def test_lambda_1_is_the_monte_carlo_return(script):
    """λ = 1: Â + V is the discounted return, bootstrapped where the time limit or the rollout cut.

    The values must telescope, so inside an episode V(s_{t+1}) is the next step's V(s_t).
    """
    rewards, values, next_values, terminated, done = random_data()
    next_values[:-1] = torch.where(done[:-1], next_values[:-1], values[1:])
    advantages = script.compute_gae(rewards, values, next_values, terminated, done, GAMMA, 1.0)
    follows = next_values[-1]
    for t in reversed(range(len(rewards))):
        follows = torch.where(done[t], next_values[t], follows)
        follows = rewards[t] + GAMMA * torch.where(terminated[t], 0.0, follows)
        torch.testing.assert_close(advantages[t], follows - values[t], atol=1e-5, rtol=0)


@each(ACTOR_CRITIC)
def test_batch_equals_its_episodes(script):
    """GAE of a batch is GAE of each episode alone: nothing leaks across an end."""
    data = random_data()
    advantages = script.compute_gae(*data, GAMMA, LAMBDA)
    done = data[-1]
    for i in range(done.shape[1]):
        ends = [*(done[:-1, i].nonzero().flatten() + 1).tolist(), len(done)]
        for start, end in zip([0, *ends], ends):
            alone = script.compute_gae(*(x[start:end, i:i + 1] for x in data), GAMMA, LAMBDA)
            torch.testing.assert_close(advantages[start:end, i:i + 1], alone)


@each(ACTOR_CRITIC)
def test_float_masks_equal_bool_masks(script):
    """0/1 floats do as masks."""
    *data, terminated, done = random_data()
    torch.testing.assert_close(
        script.compute_gae(*data, terminated.float(), done.float(), GAMMA, LAMBDA),
        script.compute_gae(*data, terminated, done, GAMMA, LAMBDA))


@each(ACTOR_CRITIC)
@pytest.mark.parametrize("which", range(5))
def test_shapes_must_agree(script, which):
    """(T, 1) beside (T, N) must not broadcast unnoticed."""
    data = list(random_data())
    data[which] = data[which][:, :1]
    with pytest.raises(AssertionError):
        script.compute_gae(*data, GAMMA, LAMBDA)


@each_kind(ACTOR_CRITIC)
def test_time_limit_on_a_constant_reward(script, kind):
    """Reward 1 for ever, cut by a time limit: with V = 1/(1−γ) every advantage is 0."""
    args, envs, agent, obs = setup(script, env_id=register(Constant, kind=kind), num_steps=13,
                                   gamma=0.9)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    assert rollout.done.sum() == 2 * 2 and not rollout.terminated.any()
    values = torch.full(rollout.rewards.shape, 10.0)
    advantages = script.compute_gae(rollout.rewards, values, values, rollout.terminated,
                                    rollout.done, 0.9, 0.95)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages), atol=1e-5, rtol=0)


@each_kind(ACTOR_CRITIC)
def test_batch_of_a_rollout(script, kind):
    """make_batch bootstraps from next_obs, its returns are Â + V, and nothing has a gradient."""
    args, envs, agent, obs = setup(script, env_id=register(Constant, kind=kind), num_steps=13,
                                   norm_reward=False, norm_adv=False)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    rollout = rollout._replace(obs=torch.randn_like(rollout.obs),
                               next_obs=torch.randn_like(rollout.next_obs))
    batch = script.make_batch(agent, rollout, args)
    with torch.no_grad():
        values, next_values = agent.value(rollout.obs), agent.value(rollout.next_obs)
    expected = script.compute_gae(rollout.rewards.float(), values, next_values, rollout.terminated,
                                  rollout.done, args.gamma, args.gae_lambda)
    torch.testing.assert_close(batch.advantages, expected.flatten())
    torch.testing.assert_close(batch.returns, (expected + values).flatten())
    torch.testing.assert_close(batch.obs, rollout.obs.flatten(0, 1))
    assert not any(x.requires_grad for x in batch)


@each_kind(ACTOR_CRITIC)
def test_the_critic_learns_returns_not_standardised_ones(script, kind):
    """R = Â + V with Â as GAE gives it: --norm-adv changes the advantages, not the target."""
    args, envs, agent, obs = setup(script, env_id=register(Constant, kind=kind), num_steps=13,
                                   norm_reward=False, norm_adv=False)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    plain = script.make_batch(agent, rollout, args)
    args.norm_adv = True
    standardised = script.make_batch(agent, rollout, args)
    assert torch.equal(plain.returns, standardised.returns)
    assert not torch.allclose(plain.advantages, standardised.advantages)
