"""Section 5 of the PPO scripts, and the gradient of a minibatch."""
import math

import pytest
import torch
from conftest import PPO, Count, each, each_kind, minibatch_gradient, register, setup

EPS = 0.2
CASES = [  # the lecture's table: ρ, Â, value of the min, is there a gradient?
    (1.1, +2.0, 1.1 * +2.0, True),
    (0.9, -2.0, 0.9 * -2.0, True),
    (0.5, +2.0, 0.5 * +2.0, True),
    (0.5, -2.0, 0.8 * -2.0, False),
    (1.5, +2.0, 1.2 * +2.0, False),
    (1.5, -2.0, 1.5 * -2.0, True),
]


def gradcheck(function, *inputs):
    """PyTorch's finite differences against its backward pass."""
    return torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


def batch_of(script, kind, **changes):
    """An agent, the batch of one rollout in Count environments, and args."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   num_steps=16, max_grad_norm=0.0, **changes)
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    return args, agent, script.make_batch(agent, rollout, args)


def gradient_by_part(script, agent, batch, args):
    """{"actor": …, "critic": …, "log_std": …}: the gradient of one minibatch of everything."""
    gradient, _ = minibatch_gradient(script, agent, batch, torch.arange(len(batch.obs)), args)
    names, sizes = zip(*((name, p.numel()) for name, p in agent.named_parameters()))
    parts = {}
    for name, part in zip(names, gradient.split(sizes)):
        parts.setdefault(name.split(".")[0], []).append(part)
    return {name: torch.cat(part) for name, part in parts.items()}


@torch.no_grad()
def descend(agent, step):
    """θ ← θ − step."""
    parameters = list(agent.parameters())
    for p, part in zip(parameters, step.split([p.numel() for p in parameters])):
        p -= part.view_as(p)


@pytest.mark.parametrize("ratio, advantage, value, has_gradient", CASES)
@each(PPO)
def test_six_cases(script, ratio, advantage, value, has_gradient):
    """RL Bootcamp 2024: value of the min, and where clipping takes the gradient away.

    Where there is a gradient it is that of ρÂ: dρ/d log π = ρ, so −ρÂ for the loss.
    """
    logprobs = torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old_logprobs = torch.tensor([-1.0], dtype=torch.float64)
    loss = script.policy_loss(logprobs, old_logprobs, torch.tensor([advantage]).double(), EPS)
    loss.backward()
    assert loss.item() == pytest.approx(-value)
    assert logprobs.grad.item() == pytest.approx(-ratio * advantage if has_gradient else 0.0)


@each(PPO)
def test_policy_loss_is_a_mean(script):
    """The six cases in one minibatch: the mean of their values."""
    ratio, advantages, values, _ = (torch.tensor(x, dtype=torch.float64) for x in zip(*CASES))
    loss = script.policy_loss(ratio.log(), torch.zeros(6), advantages, EPS)
    assert loss.item() == pytest.approx(-values.mean().item())


@each(PPO)
def test_policy_loss_by_finite_differences(script):
    """The gradient is that of the value, on random ratios on both sides of the clip."""
    torch.manual_seed(0)
    logprobs = torch.randn(64, dtype=torch.float64, requires_grad=True)
    old, advantages = logprobs.detach() + 0.3 * torch.randn(64), torch.randn(64).double()
    assert gradcheck(lambda x: script.policy_loss(x, old, advantages, EPS), logprobs)


@each(PPO)
def test_value_loss(script):
    """½ mean (V − R)²."""
    loss = script.value_loss(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0.0, 5.0]))
    assert loss.item() == pytest.approx(0.5 * (1 + 9) / 2)


@pytest.mark.parametrize("value, old, target, expected, gradient", [
    (1.1, 1.0, 2.0, 0.5 * 0.9 ** 2, -0.9),  # inside ±ε: the plain loss
    (1.5, 1.0, 2.0, 0.5 * 0.8 ** 2, 0.0),  # moved too far towards R: the clipped one, no gradient
    (0.5, 1.0, 2.0, 0.5 * 1.5 ** 2, -1.5),  # moved away from R: the plain loss is the larger
    (0.5, 1.0, 0.0, 0.5 * 0.8 ** 2, 0.0),
    (1.5, 1.0, 0.0, 0.5 * 1.5 ** 2, 1.5),
])
@each(PPO)
def test_clipped_value_loss(script, value, old, target, expected, gradient):
    """½ max[(V − R)², (V_old + clip(V − V_old, ±ε) − R)²], case by case."""
    value, old, target = (torch.tensor([x], dtype=torch.float64) for x in (value, old, target))
    loss = script.value_loss(value.requires_grad_(), old, target, EPS)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert value.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("clip", [None, EPS])
@each(PPO)
def test_value_loss_by_finite_differences(script, clip):
    """The gradient is that of the value, with and without clipping."""
    torch.manual_seed(0)
    values, old, returns = torch.randn(3, 32, dtype=torch.float64)
    assert gradcheck(lambda x: script.value_loss(x, old, returns, clip), values.requires_grad_())


@each(PPO)
def test_shapes_must_agree(script):
    """(M, 1) beside (M,) must not broadcast unnoticed, in any argument."""
    flat, tall = torch.zeros(4), torch.zeros(4, 1)
    for i in range(3):
        arguments = [tall if k == i else flat for k in range(3)]
        with pytest.raises(AssertionError):
            script.policy_loss(*arguments, EPS)
        with pytest.raises(AssertionError):
            script.value_loss(*arguments)


@each(PPO)
def test_approx_kl(script):
    """Never negative, 0 without change, and close to the true KL of two Gaussians."""
    torch.manual_seed(0)
    new, old = torch.randn(2, 1000, dtype=torch.float64)
    assert all(script.approx_kl(n, o) >= 0 for n, o in zip(new.split(1), old.split(1)))
    assert script.approx_kl(old, old) == 0
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.2, 1.3)
    actions = p.sample((200_000,))
    true_kl = torch.distributions.kl_divergence(p, q).item()
    estimate = script.approx_kl(q.log_prob(actions), p.log_prob(actions)).item()
    assert estimate == pytest.approx(true_kl, rel=0.03)  # that of the other direction: 0.1026


@each_kind(PPO)
def test_entropy_bonus_raises_the_entropy(script, kind):
    """A step down the gradient with a huge ent_coef makes the policy more random."""
    args, agent, batch = batch_of(script, kind, ent_coef=1e6)
    with torch.no_grad():  # a discrete policy starts near uniform, where nothing can be gained
        agent.actor[-1].weight.normal_()
    before = agent.policy(batch.obs).entropy().mean().item()
    gradient, _ = minibatch_gradient(script, agent, batch, torch.arange(len(batch.obs)), args)
    descend(agent, 0.01 * gradient / gradient.norm())
    assert agent.policy(batch.obs).entropy().mean().item() > before + 1e-4


@each_kind(PPO)
def test_entropy_bonus_is_a_mean_times_its_weight(script, kind):
    """ent_coef adds −c_e ∇ mean H to the gradient, and nothing to the critic."""
    args, agent, batch = batch_of(script, kind, ent_coef=0.0)
    plain = gradient_by_part(script, agent, batch, args)
    args.ent_coef = 0.3
    bonus = gradient_by_part(script, agent, batch, args)
    agent.zero_grad()
    agent.policy(batch.obs).entropy().mean().backward()
    part = "actor" if kind == "discrete" else "log_std"
    expected = torch.cat([p.grad.flatten() for name, p in agent.named_parameters()
                          if name.split(".")[0] == part])
    assert expected.norm() > 0
    torch.testing.assert_close(bonus[part] - plain[part], -0.3 * expected, atol=1e-6, rtol=1e-3)
    assert torch.equal(bonus["critic"], plain["critic"])


@each_kind(PPO)
def test_vf_coef_scales_the_critic_only(script, kind):
    """Doubling vf_coef doubles the critic's gradient and leaves the policy's."""
    args, agent, batch = batch_of(script, kind, vf_coef=0.5)
    one = gradient_by_part(script, agent, batch, args)
    args.vf_coef = 1.0
    two = gradient_by_part(script, agent, batch, args)
    assert one["critic"].norm() > 0 and one["actor"].norm() > 0
    torch.testing.assert_close(two["critic"], 2 * one["critic"])
    assert all(torch.equal(two[name], one[name]) for name in one if name != "critic")


@each_kind(PPO)
def test_policy_gradient_ascends_the_advantage(script, kind):
    """A small step makes actions of positive advantage likelier, of negative less likely."""
    args, agent, batch = batch_of(script, kind)
    batch = batch._replace(advantages=torch.where(torch.arange(len(batch.obs)) % 2 == 0, 1.0, -1.0))
    gradient, _ = minibatch_gradient(script, agent, batch, torch.arange(len(batch.obs)), args)
    descend(agent, 1e-3 * gradient / gradient.norm())
    with torch.no_grad():
        change = agent.policy(batch.obs).log_prob(batch.actions) - batch.logprobs
    assert (change * batch.advantages).mean() > 0


@each_kind(PPO)
def test_gradient_clipping(script, kind):
    """The gradient is scaled to max_grad_norm if it is longer; the norm told is the one before."""
    args, agent, batch = batch_of(script, kind)
    idx = torch.arange(len(batch.obs))
    raw, norm = minibatch_gradient(script, agent, batch, idx, args)
    assert norm.item() == pytest.approx(raw.norm().item()) and norm > 0
    for limit, factor in ((norm.item() / 4, 0.25), (norm.item() * 4, 1.0)):
        args.max_grad_norm = limit
        clipped, norm_before = minibatch_gradient(script, agent, batch, idx, args)
        torch.testing.assert_close(clipped, factor * raw, rtol=1e-3, atol=1e-8)
        assert norm_before.item() == pytest.approx(norm.item())


@each_kind(PPO)
def test_clip_vloss_is_obeyed(script, kind):
    """With clip_vloss a critic that moved beyond ±ε towards the returns gets no gradient."""
    args, agent, batch = batch_of(script, kind, clip_vloss=True)
    far = batch._replace(values=batch.values - 1.0, returns=batch.values + 1.0)
    assert gradient_by_part(script, agent, far, args)["critic"].norm() == 0
    args.clip_vloss = False
    assert gradient_by_part(script, agent, far, args)["critic"].norm() > 0
