"""reinforce.py: whole episodes, their returns, the baselines, and the gradient they give."""
import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import Constant, Count, OneStep, learn, make_optimizer, register, setup

reinforce = pytest.importorskip("reinforce")
KINDS = pytest.mark.parametrize("kind", ["discrete", "continuous"])
BASELINES = ["none", "mean", "value", "group"]


def whole_episodes(lengths, T=None):
    """The mask of episodes of these lengths, (T, E)."""
    return torch.arange(T or max(lengths))[:, None] < torch.tensor(lengths)


def prepared(env_id, **changes):
    """args, environments, agent and one rollout."""
    args, envs, agent, obs = setup(reinforce, env_id=env_id, **changes)
    return args, envs, agent, reinforce.collect_rollout(agent, envs, obs, args)[0]


def gradient_of(agent, batch, args):
    """The gradient that gradient_step steps along, by the parameter's name; nothing moves."""
    optimizer, handed = make_optimizer(reinforce, agent, args), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "adam",
                      lambda state, gradient, lr: handed.append(gradient) or state)
        reinforce.gradient_step(optimizer, args, args.episodes_per_update, optimizer.state, batch)
    gradient, = handed
    parts = gradient.split([p.numel() for p in optimizer.named.values()])
    return dict(zip(optimizer.named, parts))


# --------------------------------------------------------------------------------------------------
# Whole episodes
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@KINDS
def test_episodes_of_very_different_lengths(kind, ends):
    """Lengths 1 and 30 side by side: every episode is whole, masked behind its end, and counted.

    The short one's environment plays on, and its steps cost, too: 2 rounds × 30 steps × 2.
    """
    env_id = register(Count, kind=kind, lengths=(1, 30), ends=ends)
    args, _, _, rollout = prepared(env_id, num_envs=2, episodes_per_update=4)
    assert rollout.size == 120
    assert rollout.episodes == [(2, 1.0, 1), (60, 465.0, 30), (62, 1.0, 1), (120, 465.0, 30)]
    mask = whole_episodes([1, 30, 1, 30])
    assert torch.equal(rollout.mask, mask)
    steps = torch.arange(30)[:, None].expand(30, 4)
    assert torch.equal(rollout.obs[..., 1][mask], steps[mask].double())
    assert torch.equal(rollout.rewards, (steps + 1.0).double() * mask)
    episode = rollout.obs[..., 0]
    assert ((episode == episode[0]) | ~mask).all() and episode[0, 1] < episode[0, 3]


@KINDS
def test_episodes_are_rounded_up_to_rounds(kind):
    """3 episodes in 2 environments are 2 whole rounds, 4 episodes, and all of them count."""
    env_id = register(Count, kind=kind, lengths=(2, 5))
    args, _, agent, rollout = prepared(env_id, num_envs=2, episodes_per_update=3)
    assert torch.equal(rollout.mask, whole_episodes([2, 5, 2, 5]))
    assert [length for _, _, length in rollout.episodes] == [2, 5, 2, 5] and rollout.size == 20
    assert len(reinforce.make_batch(agent, rollout, args).obs) == 14


@KINDS
def test_types_and_shapes(kind):
    """float64 data, bool mask, time first; (T, E)."""
    env_id = register(Count, kind=kind, lengths=(3, 5), dtype=np.float64)
    _, _, _, rollout = prepared(env_id, num_envs=2, episodes_per_update=6)
    assert rollout.obs.shape == (5, 6, 2) and rollout.rewards.shape == rollout.mask.shape == (5, 6)
    assert rollout.actions.shape == ((5, 6) if kind == "discrete" else (5, 6, 2))
    assert rollout.obs.dtype == rollout.rewards.dtype == torch.float64
    assert rollout.mask.dtype == torch.bool


@pytest.mark.parametrize("lengths", [(1, 50), (20, 3), (1, 1)], ids=str)
def test_short_episodes_get_no_advantage(lengths):
    """E/N episodes of every environment, however many more the quick one could have finished."""
    env_id = register(Count, lengths=lengths)
    args, envs, agent, obs = setup(reinforce, env_id=env_id, num_envs=2, episodes_per_update=6)
    for _ in range(3):
        rollout, obs = reinforce.collect_rollout(agent, envs, obs, args)
        assert sorted(length for _, _, length in rollout.episodes) == sorted(3 * lengths)
        assert rollout.mask.sum(0).tolist() == [*lengths] * 3
        assert rollout.size == 2 * 3 * max(lengths)


@KINDS
def test_stored_actions_are_those_taken(kind):
    """What the environment got at each step of an episode is the action of that row."""
    env_id = register(Count, kind=kind, lengths=(4, 2))
    args, _, agent, rollout = prepared(env_id, num_envs=2, episodes_per_update=2)
    for i, length in enumerate((4, 2)):
        sent = rollout.actions[:length, i].numpy()
        if kind == "continuous":  # the bounds are [−1, 1] and [−1, 2]
            sent = (sent * [1.0, 1.5] + [0.0, 0.5]).clip([-1, -1], [1, 2])
        np.testing.assert_allclose(np.stack(Count.built[i].actions[:length]), sent, atol=1e-6)


@KINDS
def test_a_time_limit_counts_as_the_end(kind):
    """Nothing is added for what would have come after: G_t is what the episode paid."""
    args, _, agent, rollout = prepared(register(Constant, kind=kind), gamma=0.5, norm_reward=False)
    batch = reinforce.make_batch(agent, rollout, args)
    assert rollout.mask.all() and len(batch.obs) == 4 * 5
    expected = torch.tensor([1.9375, 1.875, 1.75, 1.5, 1.0])[:, None].expand(5, 4)
    torch.testing.assert_close(batch.returns, expected.flatten())


@KINDS
def test_batch_has_no_padding(kind):
    """B is the number of real steps; values and old log-probabilities belong to their steps."""
    args, _, agent, rollout = prepared(register(Count, kind=kind, lengths=(2, 9)))
    batch = reinforce.make_batch(agent, rollout, args)
    assert all(len(x) == 2 * (2 + 9) for x in batch) and not any(x.requires_grad for x in batch)
    with torch.no_grad():
        torch.testing.assert_close(batch.values, agent.value(batch.obs))
        torch.testing.assert_close(batch.logprobs, agent.policy(batch.obs).log_prob(batch.actions))
    assert torch.equal(batch.obs, rollout.obs[rollout.mask])


@KINDS
def test_rewards_are_scaled_episode_by_episode(kind):
    """By the std of the discounted return, which starts anew with each episode; no padding in it.

    With γ = 1 the running returns of Count are 1, 3, 6 …: those of lengths 2 and 4, twice.
    """
    args, _, agent, rollout = prepared(register(Count, kind=kind, lengths=(2, 4)), gamma=1.0)
    batch = reinforce.make_batch(agent, rollout, args)
    running = torch.tensor([1.0, 3, 1, 3, 6, 10] * 2)
    assert agent.return_stats.count == 12
    assert agent.return_stats.mean.item() == pytest.approx(running.mean().item())
    std = running.std(correction=0).item()
    assert batch.returns.max().item() == pytest.approx(10 / std, rel=1e-4)


@KINDS
def test_observation_statistics_are_of_real_steps(kind):
    """After an update: mean and variance of the episodes' observations, nothing masked."""
    args, _, agent, rollout = prepared(register(Count, kind=kind, lengths=(2, 9)))
    learn(reinforce, agent, make_optimizer(reinforce, agent, args), rollout, args)
    data = rollout.obs[rollout.mask]
    assert agent.obs_stats.count == len(data) == 22
    torch.testing.assert_close(agent.obs_stats.mean, data.mean(0))
    torch.testing.assert_close(agent.obs_stats.var, data.var(0, correction=0))


# --------------------------------------------------------------------------------------------------
# Returns and baselines
# --------------------------------------------------------------------------------------------------
def test_rewards_to_go_by_hand():
    """γ = ½, episodes of 3 and 1 steps; what stands behind an end does not count."""
    rewards = torch.tensor([[1.0, 5.0], [2.0, 99.0], [4.0, 99.0]])
    returns = reinforce.rewards_to_go(rewards, whole_episodes([3, 1]), 0.5)
    torch.testing.assert_close(returns, torch.tensor([[3.0, 5.0], [4.0, 0.0], [4.0, 0.0]]))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_to_go_by_brute_force(gamma):
    """G_t = Σ_k γ^(k−t) r_k over the rest of the episode, for random lengths."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 13, (20,)).tolist()
    mask, rewards = whole_episodes(lengths, 15), torch.randn(15, 20, dtype=torch.float64)
    returns = reinforce.rewards_to_go(rewards, mask, gamma)
    for i, length in enumerate(lengths):
        for t in range(15):
            expected = sum(gamma ** (k - t) * rewards[k, i].item() for k in range(t, length))
            assert returns[t, i].item() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(AssertionError):
        reinforce.rewards_to_go(rewards, mask[:, :1], gamma)


RETURNS = torch.tensor([[6.0, 2.0, 10.0], [4.0, 0.0, 8.0]])  # lengths 2, 1 and 2
MASK, ONES = whole_episodes([2, 1, 2]), torch.ones(2, 3)


def with_baseline(baseline, returns=RETURNS, values=ONES, mask=MASK, **changes):
    args = reinforce.Args(baseline=baseline, num_envs=returns.shape[1], **changes)
    return reinforce.with_baseline(returns, values, mask, args)


def test_baselines_by_hand():
    """none: G; value: G − V; mean: G less the mean over the steps of the other episodes."""
    assert torch.equal(with_baseline("none")[MASK], RETURNS[MASK])
    assert torch.equal(with_baseline("value")[MASK], RETURNS[MASK] - 1)
    others = torch.tensor([(2 + 10 + 8) / 3, (6 + 4 + 10 + 8) / 4, (6 + 4 + 2) / 3])
    torch.testing.assert_close(with_baseline("mean")[MASK], (RETURNS - others)[MASK])


def test_mean_of_one_episode():
    """There are no others, so nothing to compare with: no baseline, and no division by zero."""
    returns = torch.tensor([[3.0], [1.0]])
    assert torch.equal(with_baseline("mean", returns, returns, whole_episodes([2])), returns)


def test_mean_baseline_is_independent_of_the_episode():
    """Another return of episode i changes its own weights by just that, as its b has no part in it.

    (With its own return in the mean, the estimate of the gradient would be biased.)
    """
    more = RETURNS + torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    change = with_baseline("mean", more) - with_baseline("mean")
    assert change[0, 1].item() == pytest.approx(5.0)
    assert (change[MASK] != 0).all()  # the others' weights know of it


@pytest.mark.parametrize("baseline", ["none", "value", "mean"])
def test_without_reward_to_go_each_step_gets_the_whole_return(baseline):
    """G_0 at every step of the episode; the baseline comes after."""
    psi = with_baseline(baseline, reward_to_go=False)
    whole = torch.tensor([[6.0, 2.0, 10.0], [6.0, 0.0, 10.0]])
    others = torch.tensor([(2 + 10 + 10) / 3, (6 + 6 + 10 + 10) / 4, (6 + 6 + 2) / 3])
    expected = whole - {"none": 0.0, "value": 1.0, "mean": others}[baseline]
    torch.testing.assert_close(psi[MASK], expected[MASK])


def test_group_weights():
    """One number per episode: mean 0 and std 1 within each round of N; equal returns give 0."""
    torch.manual_seed(0)
    first = torch.cat([torch.randn(4) * 3 + 7, torch.full((4,), 2.5)])  # two rounds of 4
    returns, mask = first.expand(6, 8), whole_episodes([6, 1, 2, 3, 4, 5, 6, 1])
    args = reinforce.Args(baseline="group", num_envs=4, episodes_per_update=8)
    psi = reinforce.with_baseline(returns, torch.zeros(6, 8), mask, args)
    assert torch.equal(psi, psi[:1].expand(6, 8))
    assert psi[0, :4].mean().abs() < 1e-6 and psi[0, :4].std().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(psi[0, :4].argsort(), first[:4].argsort())
    assert torch.equal(psi[0, 4:], torch.zeros(4))


@pytest.mark.parametrize("n", [3, 6, 8])
def test_equal_returns_in_a_group(n):
    """Equal returns give exactly 0, though the mean of n equal float32 numbers may miss them."""
    args = reinforce.Args(baseline="group", num_envs=n, episodes_per_update=n)
    for value in (torch.rand(200) * 500).tolist():
        returns = torch.full((1, n), value)
        mask = torch.ones(1, n, dtype=bool)
        psi = reinforce.with_baseline(returns, torch.zeros(1, n), mask, args)
        assert not psi.any()


class RandomStart(gym.Env):
    """Two steps from a start drawn at random."""

    def __init__(self, render_mode=None):
        self.observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(size=1).astype(np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), float(action), self.time == 2, False, {}


def test_a_group_starts_in_one_state():
    """baseline group: the episodes of a round share their start, rounds do not; else none do."""
    env_id = register(RandomStart)
    for baseline in ("group", "mean"):
        _, _, _, rollout = prepared(env_id, num_envs=4, episodes_per_update=12, baseline=baseline)
        starts = rollout.obs[0, :, 0].view(3, 4)
        assert len(set(starts.flatten().tolist())) == (3 if baseline == "group" else 12)
        if baseline == "group":
            assert (starts == starts[:, :1]).all()
    assert len(set(map(tuple, rollout.actions.T.tolist()))) > 1  # they do not act alike


# --------------------------------------------------------------------------------------------------
# The objective and the update
# --------------------------------------------------------------------------------------------------
def test_policy_loss_by_hand():
    """−(1/E) Σ log π Ψ: a sum over time, a mean over episodes. Advantages carry no gradient."""
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0, 1.0])
    loss = reinforce.policy_loss(logprobs, advantages, 2)
    loss.backward()
    assert loss.item() == pytest.approx(1.5)  # −(−2 + 2 − 3)/2
    torch.testing.assert_close(logprobs.grad, -advantages / 2)
    with pytest.raises(AssertionError):
        reinforce.policy_loss(logprobs, advantages[:, None], 2)
    with pytest.raises(AssertionError):
        reinforce.policy_loss(logprobs, advantages.requires_grad_(), 2)


@pytest.mark.filterwarnings("ignore:var")  # the explained variance of one number
@pytest.mark.parametrize("norm_adv", [True, False])
@pytest.mark.parametrize("baseline", BASELINES)
@KINDS
def test_one_step_episodes_are_finite(kind, baseline, norm_adv):
    """No std of a single number, no empty sum: also with a single episode per update."""
    for num_envs in (1, 2, 4):
        if baseline == "group" and num_envs == 1:
            continue  # a group of one has nothing to compare with
        args, envs, agent, rollout = prepared(
            register(OneStep, kind=kind), num_envs=num_envs, episodes_per_update=num_envs,
            baseline=baseline, norm_adv=norm_adv)
        optimizer = make_optimizer(reinforce, agent, args)
        metrics = learn(reinforce, agent, optimizer, rollout, args)
        assert all(p.isfinite().all() for p in agent.parameters())
        assert all(math.isfinite(metrics[k]) for k in ("policy_loss", "value_loss", "grad_norm"))


@pytest.mark.parametrize("baseline", BASELINES)
@KINDS
def test_only_the_value_baseline_trains_the_critic(kind, baseline):
    """Without it the critic stays as it is, bit for bit; the actor always learns."""
    args, _, agent, rollout = prepared(register(OneStep, kind=kind), num_envs=4, baseline=baseline)
    if kind == "discrete":  # not all episodes alike
        rollout = rollout._replace(actions=torch.tensor([[0, 1, 2, 3]]))
    before = copy.deepcopy(agent.state_dict())
    learn(reinforce, agent, make_optimizer(reinforce, agent, args), rollout, args)
    for name, p in agent.named_parameters():
        same = name.startswith("critic") and baseline != "value"
        assert torch.equal(p, before[name]) == same, name


@KINDS
def test_critic_learns_the_returns(kind):
    """vf_coef ½(V − G)²: its gradient is c_v mean (V − G) ∇V with G a constant."""
    args, _, agent, rollout = prepared(register(Count, kind=kind, lengths=(2, 9)), vf_coef=0.7,
                                       max_grad_norm=0.0)
    batch = reinforce.make_batch(agent, rollout, args)
    gradient = gradient_of(agent, batch, args)
    values = agent.value(batch.obs)
    values.backward(0.7 * (values - batch.returns).detach() / len(values))
    for name, p in agent.critic.named_parameters():
        torch.testing.assert_close(gradient[f"critic.{name}"], p.grad.flatten(), rtol=1e-4,
                                   atol=1e-6)


@KINDS
def test_entropy_bonus(kind):
    """ent_coef adds −c_e ∇ (1/E) Σ over episodes Σ_t H, a sum over time as in the loss."""
    args, _, agent, rollout = prepared(register(Count, kind=kind), max_grad_norm=0.0)
    with torch.no_grad():  # away from the uniform policy, where ∇H = 0
        agent.actor[-1].weight.normal_()
    batch = reinforce.make_batch(agent, rollout, args)
    plain = gradient_of(agent, batch, args)
    args.ent_coef = 0.3
    bonus = gradient_of(agent, batch, args)
    (agent.policy(batch.obs).entropy().sum() / args.episodes_per_update).backward()
    name = "actor.4.bias" if kind == "discrete" else "log_std"
    expected = -0.3 * dict(agent.named_parameters())[name].grad
    assert expected.norm() > 1e-3
    torch.testing.assert_close(bonus[name] - plain[name], expected, rtol=1e-2, atol=1e-5)


@KINDS
def test_gradient_clipping(kind):
    """The gradient is scaled to max_grad_norm if it is longer; the norm told is the one before."""
    args, _, agent, rollout = prepared(register(Count, kind=kind), max_grad_norm=0.0)
    batch = reinforce.make_batch(agent, rollout, args)
    raw = torch.cat(list(gradient_of(agent, batch, args).values()))
    for limit, factor in ((raw.norm().item() / 4, 0.25), (raw.norm().item() * 4, 1.0)):
        args.max_grad_norm = limit
        clipped = torch.cat(list(gradient_of(agent, batch, args).values()))
        torch.testing.assert_close(clipped, factor * raw, rtol=1e-3, atol=1e-7)
    args = reinforce.Args(norm_adv=False, max_grad_norm=1e-3, num_envs=2, episodes_per_update=4)
    metrics = learn(reinforce, agent, make_optimizer(reinforce, agent, args), rollout, args)
    assert metrics["grad_norm"] > 0.01


@pytest.mark.parametrize("episodes, played", [(4, 4), (3, 4)])
@KINDS
def test_metrics(kind, episodes, played):
    """Losses, entropy and values are those before the step, the losses without their weights; the
    policy's is a mean over the episodes played. The KL is that of the step."""
    args, _, agent, rollout = prepared(
        register(Count, kind=kind, lengths=(2, 9)), num_envs=2, episodes_per_update=episodes,
        ent_coef=0.3, learning_rate=0.03, norm_adv=False)
    with torch.no_grad():  # away from the uniform policy
        agent.actor[-1].weight.normal_(std=0.5)
    batch = reinforce.make_batch(agent, rollout, args)
    old, optimizer = copy.deepcopy(agent), make_optimizer(reinforce, agent, args)
    metrics = reinforce.update(agent, optimizer, batch, args)
    errors, new = batch.returns - batch.values, agent.policy(batch.obs).log_prob(batch.actions)
    log_ratio = (new - batch.logprobs).detach()
    assert log_ratio.abs().max() > 0.01 and errors.mean().abs() > 0.1
    expected = {
        "policy_loss": -(batch.logprobs * batch.advantages).sum() / played,
        "value_loss": 0.5 * errors.square().mean(),
        "entropy": old.policy(batch.obs).entropy().mean(),
        "approx_kl": (log_ratio.exp() - 1 - log_ratio).mean(),
        "explained_variance": 1 - errors.var() / batch.returns.var()}
    assert metrics.keys() == expected.keys() | {"grad_norm"}
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


def test_advantages_are_standardised_over_the_batch():
    """norm_adv: mean 0 and std 1 over all B real steps, but not for groups; off: as they were."""
    for baseline in ("none", "group"):
        args, _, agent, rollout = prepared(register(Count, lengths=(2, 9)), norm_adv=False,
                                           baseline=baseline, norm_reward=False)
        expected = reinforce.make_batch(agent, rollout, args).advantages
        if baseline == "none":
            expected = (expected - expected.mean()) / expected.std(correction=0)
        args.norm_adv = True
        batch = reinforce.make_batch(agent, rollout, args)
        torch.testing.assert_close(batch.advantages, expected)
    assert batch.advantages.abs().sum() > 0


# --------------------------------------------------------------------------------------------------
# The gradient, on average
# --------------------------------------------------------------------------------------------------
class Fork(gym.Env):
    """Action 0 ends at once and pays 1. Action 1 leads on to a step where action 1 pays 3, 0 none.

    Both states have the same observation, so the policy is one number p = π(1):
    J = (1 − p) + 3 p².
    """

    def __init__(self, render_mode=None):
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.time += 1
        reward = float(action == 0) if self.time == 1 else 3.0 * action
        return np.ones(1, np.float32), reward, self.time == 2 or action == 0, False, {}


def gradients(env, actor_bias, updates, value=1.0, **changes):
    """∇ of the loss in the logits' biases, of `updates` batches of 4 episodes, (updates, A)."""
    args, envs, agent, obs = setup(reinforce, env_id=register(env), num_envs=4, gamma=1.0,
                                   episodes_per_update=4, norm_reward=False, norm_obs=False,
                                   norm_adv=False,
                                   max_grad_norm=0.0, vf_coef=0.0, **changes)
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.copy_(actor_bias)
        agent.critic[-1].weight.zero_()
        agent.critic[-1].bias.fill_(value)
    result = []
    for _ in range(updates):
        rollout, obs = reinforce.collect_rollout(agent, envs, obs, args)
        batch = reinforce.make_batch(agent, rollout, args)
        result.append(gradient_of(agent, batch, args)["actor.4.bias"])
    return torch.stack(result)


def exact_gradient(expected_return, actor_bias):
    """−∇J in the logits, J as a function of the probabilities."""
    logits = actor_bias.clone().requires_grad_()
    return -torch.autograd.grad(expected_return(logits.softmax(-1)), logits)[0]


@pytest.mark.parametrize("baseline, reward_to_go", [
    ("none", True), ("mean", True), ("value", True), ("none", False), ("mean", False)])
def test_gradient_is_right_on_average(baseline, reward_to_go):
    """The mean over 500 updates is −∇J, within 4.5 standard errors, lengths depend on actions.

    It would not be with: the mean of 4 episodes that includes the own one (its gradient
    is ¼ smaller), the mean over steps in place of episodes, the first 4 episodes to end.
    """
    bias = torch.tensor([0.0, 0.5])
    exact = exact_gradient(lambda p: p[0] + 3 * p[1] ** 2, bias)
    found = gradients(Fork, bias, 500, baseline=baseline, reward_to_go=reward_to_go)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()
    assert (error < 0.12 * exact.abs()).all()  # so the test is sharp


def test_baselines_lower_the_variance():
    """On four arms that pay 0, 0.2, 1 and 0.5: same mean, less noise."""
    bias, pay = torch.tensor([0.5, 0.0, -0.5, 1.0]), torch.tensor([0.0, 0.2, 1.0, 0.5])
    exact, variance = exact_gradient(lambda p: p @ pay, bias), {}
    for baseline in ("none", "mean", "value"):
        found = gradients(OneStep, bias, 300, float(bias.softmax(-1) @ pay), baseline=baseline)
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - exact).abs() < 4.5 * error).all()
        variance[baseline] = found.var(0).sum().item()
    assert variance["mean"] < 0.8 * variance["none"] > variance["value"]
