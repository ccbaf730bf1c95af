"""a2c.py: PPO with one epoch and one minibatch (and another optimiser), and what its step is."""
import copy
import importlib

import pytest
import torch
from conftest import Constant, Count, learn, make_optimizer, minibatch_gradient, register, setup

a2c = pytest.importorskip("a2c")
reinforce = pytest.importorskip("reinforce")
KINDS = pytest.mark.parametrize("kind", ["discrete", "continuous"])


def prepared(kind, env=Count, **changes):
    """args, agent and one rollout of 2 × 16 steps, by default in episodes of 3 and 4 steps."""
    lengths = {"lengths": (3, 4)} if env is Count else {}
    args, envs, agent, obs = setup(a2c, env_id=register(env, kind=kind, **lengths),
                                   **({"num_steps": 16} | changes))
    agent.obs_stats.update(torch.randn(50, len(obs[0])) * 2 + 1)
    rollout, _ = a2c.collect_rollout(agent, envs, obs, args)
    return args, agent, rollout


def gradient_of(agent, batch, args):
    """The gradient that gradient_step steps along, and what it returns besides; nothing moves."""
    optimizer, handed = make_optimizer(a2c, agent, args), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a2c, "rmsprop", lambda state, gradient, lr: handed.append(gradient) or state)
        _, metrics = a2c.gradient_step(optimizer, args, optimizer.state, list(batch))
    assert len(handed) == 1
    return handed[0], metrics


def critic_part(agent, gradient):
    sizes = [p.numel() for p in agent.parameters()]
    return torch.cat([part for (name, _), part in zip(agent.named_parameters(),
                                                      gradient.split(sizes))
                      if name.startswith("critic")])


def as_ppo(kind, agent, args):
    """The PPO script of this action space, an agent of it with the same state, and its args."""
    ppo = importlib.import_module(f"ppo_{kind}")
    same = ["env_id", "num_envs", "num_steps", "gamma", "gae_lambda", "learning_rate", "norm_adv",
            "ent_coef", "vf_coef", "max_grad_norm", "norm_obs", "norm_reward"]
    its_args = ppo.Args(update_epochs=1, num_minibatches=1, clip_vloss=False, target_kl=None,
                        **{name: getattr(args, name) for name in same})
    twin = ppo.Agent(ppo.make_envs(its_args), its_args)
    twin.load_state_dict(agent.state_dict())
    return ppo, twin, its_args


# --------------------------------------------------------------------------------------------------
# Relations
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{"max_grad_norm": 0.0}, {"max_grad_norm": 0.1},
                                     {"max_grad_norm": 0.0, "ent_coef": 0.05, "vf_coef": 0.3}],
                         ids=str)
@KINDS
def test_gradient_is_that_of_ppo_with_one_step(kind, changes):
    """On the same batch: −∇ mean[ρÂ] at ρ = 1 is −∇ mean[log π Â], to 1e-6."""
    args, agent, rollout = prepared(kind, **changes)
    with torch.no_grad():  # a policy at the maximum of its entropy would hide the bonus
        agent.actor[-1].weight.normal_(std=0.3)
    batch = a2c.make_batch(agent, rollout, args)
    ours, (*_, norm) = gradient_of(agent, batch, args)
    ppo, twin, its_args = as_ppo(kind, agent, args)
    theirs, its_norm = minibatch_gradient(ppo, twin, ppo.Batch(*batch), torch.arange(32), its_args)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert norm.item() == pytest.approx(its_norm.item(), rel=1e-5) and norm > 0.1
    assert ours.norm().item() == pytest.approx(args.max_grad_norm or norm.item(), rel=1e-3)


@pytest.mark.parametrize("norm_adv", [True, False])
@KINDS
def test_update_is_that_of_ppo_with_one_step(kind, norm_adv, monkeypatch):
    """Three times from the same rollout, with A2C's optimiser: the same parameters, statistics and
    metrics."""
    args, agent, rollout = prepared(kind, norm_adv=norm_adv)
    ppo, twin, its_args = as_ppo(kind, agent, args)
    before = copy.deepcopy(agent.state_dict())
    optimizer, its_optimizer = make_optimizer(a2c, agent, args), make_optimizer(ppo, twin, its_args)

    def rmsprop(state, gradient, lr):  # in adam's place, whose state has m and c₁ besides
        theta, v, c = a2c.rmsprop([state[0], state[2], state[4]], gradient, lr)
        return [theta, state[1], v, state[3], c]

    monkeypatch.setattr(ppo, "adam", rmsprop)
    for _ in range(3):
        ours = learn(a2c, agent, optimizer, rollout, args)
        theirs = learn(ppo, twin, its_optimizer, ppo.Rollout(*rollout), its_args)
        assert theirs["gradient_steps"] == 1
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(agent.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert not torch.equal(agent.actor[0].weight, before["actor.0.weight"])
    for name in ("approx_kl", "explained_variance", "grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


def test_gae_of_whole_episodes_is_the_rewards_to_go():
    """λ = 1, V = 0: a2c.py's advantages are reinforce.py's returns, episode by episode."""
    torch.manual_seed(0)
    lengths = torch.tensor([7, 1, 4, 12])
    mask = torch.arange(12)[:, None] < lengths  # (T, E)
    rewards, zeros = torch.randn(12, 4) * mask, torch.zeros(12, 4)
    done = torch.arange(12)[:, None] == lengths - 1
    advantages = a2c.compute_gae(rewards, zeros, zeros, done, done, 0.9, 1.0)
    torch.testing.assert_close(reinforce.rewards_to_go(rewards, mask, 0.9), advantages * mask)
    assert advantages[mask].abs().min() > 0


# --------------------------------------------------------------------------------------------------
# The objective
# --------------------------------------------------------------------------------------------------
def test_policy_loss():
    """−mean[log π Â], and its gradient −Â/B, by hand; log π of shape (B,) only."""
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0])
    loss = a2c.policy_loss(logprobs, advantages)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)  # −(−1 + 2 − 2 − 0)/4
    torch.testing.assert_close(logprobs.grad, -advantages / 4)
    with pytest.raises(AssertionError):
        a2c.policy_loss(logprobs, advantages[:, None])


def test_policy_loss_refuses_advantages_with_a_gradient():
    """It would reach the critic through its own mistakes."""
    with pytest.raises(AssertionError):
        a2c.policy_loss(torch.zeros(2), torch.zeros(2, requires_grad=True))


@KINDS
def test_targets_carry_no_gradient(kind):
    """The critic's gradient is c_v mean (V − R) ∇V with R a constant, bootstrapped or not."""
    args, agent, rollout = prepared(kind, max_grad_norm=0.0, vf_coef=0.7)
    batch = a2c.make_batch(agent, rollout, args)
    gradient, _ = gradient_of(agent, batch, args)
    values = agent.value(batch.obs)
    errors = (values - batch.returns).detach()
    values.backward(0.7 * errors / len(errors))
    expected = torch.cat([p.grad.flatten() for p in agent.critic.parameters()])
    assert expected.norm() > 0.1
    torch.testing.assert_close(critic_part(agent, gradient), expected, rtol=1e-4, atol=1e-6)


@KINDS
def test_critic_learns_from_its_loss_only(kind):
    """vf_coef 0: a whole update leaves the critic as it is, bit for bit; the actor moves."""
    args, agent, rollout = prepared(kind, vf_coef=0.0, ent_coef=0.01)
    before = copy.deepcopy(agent.state_dict())
    learn(a2c, agent, make_optimizer(a2c, agent, args), rollout, args)
    for name, p in agent.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("critic"), name


# --------------------------------------------------------------------------------------------------
# The update
# --------------------------------------------------------------------------------------------------
@KINDS
def test_every_step_contributes(kind):
    """A change of the reward at t changes the gradient, for each t, the last one, too."""
    args, agent, rollout = prepared(kind, num_steps=5, gae_lambda=0.0, norm_reward=False)
    plain, _ = gradient_of(agent, a2c.make_batch(agent, rollout, args), args)
    for t in range(5):
        rewards = rollout.rewards.clone()
        rewards[t, 0] += 1
        batch = a2c.make_batch(agent, rollout._replace(rewards=rewards), args)
        gradient, _ = gradient_of(agent, batch, args)
        assert (gradient - plain).norm() > 1e-3, t


@KINDS
def test_lambda_0_gives_the_td_error(kind):
    """Through make_batch: r + γ V(s') − V(s) in a batch whose episodes never terminate."""
    args, agent, rollout = prepared(kind, Constant, gae_lambda=0.0, norm_reward=False,
                                    norm_adv=False)
    rollout = rollout._replace(next_obs=torch.randn_like(rollout.next_obs))
    batch = a2c.make_batch(agent, rollout, args)
    with torch.no_grad():
        expected = 1 + args.gamma * agent.value(rollout.next_obs) - agent.value(rollout.obs)
    torch.testing.assert_close(batch.advantages, expected.flatten())


@KINDS
def test_lambda_1_gives_the_monte_carlo_return(kind):
    """Through make_batch: the target is the discounted return, plus V behind the rollout's end."""
    args, agent, rollout = prepared(kind, gae_lambda=1.0, gamma=0.9, norm_reward=False)
    batch = a2c.make_batch(agent, rollout, args)
    with torch.no_grad():
        following = agent.value(rollout.next_obs[-1])
    expected = torch.zeros(16, 2)
    for t in reversed(range(16)):
        expected[t] = following = rollout.rewards[t] + 0.9 * following * ~rollout.terminated[t]
    torch.testing.assert_close(batch.returns, expected.flatten(), rtol=1e-4, atol=1e-4)


@KINDS
def test_one_step_per_update(kind, monkeypatch):
    """One gradient, of the whole batch; the data are not used again."""
    args, agent, rollout = prepared(kind)
    optimizer, seen, step = make_optimizer(a2c, agent, args), [], a2c.gradient_step
    monkeypatch.setattr(a2c, "gradient_step", lambda optimizer, args, state, batch:
                        seen.append(batch) or step(optimizer, args, state, batch))
    for k in range(1, 4):
        learn(a2c, agent, optimizer, rollout, args)
        assert optimizer.state[-1] == pytest.approx(1 - 0.99**k)
    assert len(seen) == 3 and all(len(batch[0]) == 32 for batch in seen)


@KINDS
def test_a_step_changes_nothing_in_place(kind):
    """gradient_step is a function: neither the state nor the batch is another after it."""
    args, agent, rollout = prepared(kind)
    optimizer, batch = make_optimizer(a2c, agent, args), a2c.make_batch(agent, rollout, args)
    before = [x.clone() for x in (*optimizer.state, *batch)]
    after, _ = a2c.gradient_step(optimizer, args, optimizer.state, list(batch))
    assert all(torch.equal(x, y) for x, y in zip(before, (*optimizer.state, *batch)))
    assert not torch.equal(after[0], before[0])


@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_rmsprop_is_adam_without_momentum(rate):
    """Ten steps on random gradients, with a learning rate that changes: PyTorch's Adam, β₁ = 0."""
    theta = torch.nn.Parameter(torch.randn(50))
    theirs = torch.optim.Adam([theta], lr=rate, betas=(0.0, 0.99), eps=1e-5)
    state = [theta.detach().clone(), torch.zeros(50), torch.zeros(())]
    for k in range(10):
        gradient = torch.randn(50) * 10.0 ** -(k % 4)
        theta.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = rate / (k + 1)
        theirs.step()
        state = a2c.rmsprop(state, gradient, torch.tensor(rate / (k + 1)))
    torch.testing.assert_close(state[0], theta.detach(), rtol=1e-5, atol=3e-5 * rate)


@KINDS
def test_metrics(kind):
    """Losses, entropy and norm are those of the whole batch, before the step."""
    args, agent, rollout = prepared(kind, norm_adv=False, norm_reward=False)
    before, batch = copy.deepcopy(agent), a2c.make_batch(agent, rollout, args)
    gradient, _ = gradient_of(copy.deepcopy(agent), batch, a2c.Args(max_grad_norm=0.0))
    metrics = learn(a2c, agent, make_optimizer(a2c, agent, args), rollout, args)
    with torch.no_grad():
        policy, values = before.policy(batch.obs), before.value(batch.obs)
    expected = {
        "policy_loss": -(policy.log_prob(batch.actions) * batch.advantages).mean(),
        "value_loss": 0.5 * (values - batch.returns).square().mean(),
        "entropy": policy.entropy().mean().detach(),
        "explained_variance": 1 - (batch.returns - values).var() / batch.returns.var(),
        "grad_norm": gradient.norm(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert metrics["approx_kl"] > 0
