"""Section 2: the policy's distributions against torch.distributions and by sampling."""
import math

import pytest
import torch
from conftest import SCRIPTS, Count, each, each_kind, register, setup
from torch import distributions as D

GAUSSIAN = [s for s in SCRIPTS if hasattr(s, "Gaussian")]
CATEGORICAL = [s for s in SCRIPTS if hasattr(s, "Categorical")]
SAMPLES = 100_000


def gaussian(script, *shape):
    """Ours and PyTorch's, with random means and standard deviations."""
    torch.manual_seed(0)
    mean, log_std = torch.randn(*shape), torch.randn(shape[-1]) * 0.5
    return (script.Gaussian(mean, log_std),
            D.Independent(D.Normal(mean, log_std.exp().expand(shape)), 1))


def samples(distribution):
    """Independent samples of one distribution: those of a batch of copies.    (SAMPLES, …)"""
    first = distribution[0]
    copies = {distribution._fields[0]: first.expand(SAMPLES, *first.shape)}
    return distribution._replace(**copies).sample()


def categorical(script, *shape):
    torch.manual_seed(0)
    logits = 2 * torch.randn(*shape)
    return script.Categorical(logits), D.Categorical(logits=logits)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (7, 5, 3)])
@each(GAUSSIAN)
def test_gaussian_equals_pytorch_s(script, shape):
    """log_prob and entropy of every batch shape, also far out."""
    ours, theirs = gaussian(script, *shape)
    actions = 5 * torch.randn(*shape)
    assert ours.log_prob(actions).shape == ours.entropy().shape == shape[:-1]
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


@pytest.mark.parametrize("shape", [(3,), (5, 3), (7, 5, 3)])
@each(CATEGORICAL)
def test_categorical_equals_pytorch_s(script, shape):
    """log_prob and entropy of every batch shape."""
    ours, theirs = categorical(script, *shape)
    actions = torch.randint(3, shape[:-1])
    assert ours.log_prob(actions).shape == ours.entropy().shape == shape[:-1]
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


@each(GAUSSIAN)
def test_gaussian_samples(script):
    """Mean, variance and independence of samples, within 5 standard errors."""
    ours, theirs = gaussian(script, 2, 3)
    x = samples(ours)
    std = theirs.base_dist.stddev
    error = 5 / math.sqrt(SAMPLES)
    assert x.shape == (SAMPLES, 2, 3)
    assert ((x.mean(0) - theirs.mean).abs() < error * std).all()
    assert ((x.var(0) / std.square() - 1).abs() < error * math.sqrt(2)).all()
    correlation = torch.corrcoef(x.flatten(1).T) - torch.eye(6)
    assert (correlation.abs() < error).all()


@each(CATEGORICAL)
def test_categorical_samples(script):
    """Frequencies of samples, within 5 standard errors."""
    ours, theirs = categorical(script, 2, 4)
    x = samples(ours)
    assert x.shape == (SAMPLES, 2)
    frequencies = torch.stack([(x == a).float().mean(0) for a in range(4)], -1)
    error = 5 * (theirs.probs * (1 - theirs.probs) / SAMPLES).sqrt()
    assert ((frequencies - theirs.probs).abs() < error).all()


@pytest.mark.parametrize("script, make", [(s, gaussian) for s in GAUSSIAN]
                         + [(s, categorical) for s in CATEGORICAL],
                         ids=lambda x: x.__name__)
def test_entropy_is_the_mean_surprise(script, make):
    """E[−log π(a)] over samples is the entropy, within 5 standard errors."""
    ours, _ = make(script, 4)
    surprise = -ours.log_prob(samples(ours))
    error = 5 * surprise.std().item() / math.sqrt(SAMPLES)
    assert surprise.mean().item() == pytest.approx(ours.entropy().item(), abs=error)


@each(GAUSSIAN)
def test_gaussian_mode(script):
    """The mode is the mean; it has a higher density than its neighbours."""
    ours, theirs = gaussian(script, 5, 3)
    assert torch.equal(ours.mode, theirs.mean)
    assert (ours.log_prob(ours.mode) > ours.log_prob(ours.mode + 0.1)).all()


@each(CATEGORICAL)
def test_categorical_mode(script):
    """The mode is the likeliest action."""
    ours, theirs = categorical(script, 5, 3)
    assert torch.equal(ours.mode, theirs.probs.argmax(-1))


@each_kind(SCRIPTS)
def test_shapes_of_policy_and_value(script, kind):
    """(…, O) in, (…) out: for one observation, a step of N and a rollout of (T, N)."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind))
    for batch_shape in ((), (2,), (8, 2)):
        obs = torch.randn(*batch_shape, 2)
        policy = agent.policy(obs)
        actions = policy.sample()
        assert actions.shape == batch_shape + (() if kind == "discrete" else (2,))
        assert not actions.requires_grad
        assert policy.mode.shape == actions.shape
        assert policy.log_prob(actions).shape == policy.entropy().shape == batch_shape
        assert policy.log_prob(actions).requires_grad
        assert agent.value(obs).shape == batch_shape


@each_kind(SCRIPTS)
def test_gradient_of_log_prob(script, kind):
    """The score E[∇ log π(a|s)] is 0, within 5 standard errors, and not 0 sample by sample."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind))
    last = agent.actor[-1].bias
    policy = agent.policy(torch.ones(4000, 2))
    actions = policy.sample()
    scores = torch.stack([torch.autograd.grad(x, last, retain_graph=True)[0]
                          for x in policy.log_prob(actions).split(40)[:100]
                          for x in [x.sum()]]) / 40
    error = 5 * scores.std(0) / math.sqrt(len(scores))
    assert (scores.mean(0).abs() < error).all() and (scores.std(0) > 0).all()
