"""trpo.py: the Fisher matrix, conjugate gradients, the step within the trust region."""
import copy
import functools
import math

import pytest
import torch
from conftest import Count, learn, make_optimizer, register, setup
from torch import distributions as D
from torch import nn

trpo = pytest.importorskip("trpo")
a2c = pytest.importorskip("a2c")
KINDS = pytest.mark.parametrize("kind", ["discrete", "continuous"])


def prepared(kind, **changes):
    """args, agent and the batch of a rollout in Count environments, as update hands it over."""
    args, envs, agent, obs = setup(trpo, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   **({"num_steps": 32} | changes))
    with torch.no_grad():  # away from the start, where a discrete policy is uniform
        agent.actor[-1].weight.normal_(std=0.3)
    rollout, _ = trpo.collect_rollout(agent, envs, obs, args)
    return args, agent, trpo.make_batch(agent, rollout, args)


def policy_parameters(agent):
    return [p for name, p in agent.named_parameters() if not name.startswith("critic")]


def theta(agent):
    """The policy's parameters as one vector, a copy."""
    return nn.utils.parameters_to_vector(policy_parameters(agent)).detach().clone()


@torch.no_grad()
def loss_and_kl(agent, old_agent, batch):
    """The surrogate loss and KL(π_old ‖ π), from the agents as they are."""
    old, new = old_agent.policy(batch.obs), agent.policy(batch.obs)
    loss = trpo.policy_loss(new.log_prob(batch.actions), batch.logprobs, batch.advantages)
    return loss.item(), trpo.kl_divergence(old, new).mean().item()


def critic_gradient(agent, minibatch, args):
    """The gradient that critic_step steps along, and the norm it returns; nothing moves."""
    optimizer, handed = make_optimizer(trpo, agent, args), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trpo, "adam", lambda state, gradient, lr: handed.append(gradient) or state)
        _, (norm,) = trpo.critic_step(optimizer, args, optimizer.state, minibatch)
    gradient, = handed
    return gradient, norm


def watch(monkeypatch):
    """A dict that fills with the F x product and the full step of a policy_update."""
    seen, solve, search = {}, trpo.conjugate_gradient, trpo.line_search

    def solving(matvec, b, iters):
        seen["fisher"], seen["gradient"] = matvec, b
        return solve(matvec, b, iters)

    def searching(losses, parameters, full_step, loss_before, args):
        seen["step"] = full_step.clone()
        return search(losses, parameters, full_step, loss_before, args)

    monkeypatch.setattr(trpo, "conjugate_gradient", solving)
    monkeypatch.setattr(trpo, "line_search", searching)
    return seen


# --------------------------------------------------------------------------------------------------
# The Fisher matrix
# --------------------------------------------------------------------------------------------------
class PolicyOf(nn.Module):
    """So that functional_call can put other parameters into agent.policy."""

    def __init__(self, agent):
        super().__init__()
        self.agent = agent

    def at(self, vector, obs):
        named = [(n, p) for n, p in self.agent.named_parameters() if not n.startswith("critic")]
        parts = vector.split([p.numel() for _, p in named])
        values = {f"agent.{n}": x.view_as(p) for (n, p), x in zip(named, parts)}
        return torch.func.functional_call(self, values, (obs,))

    def forward(self, obs):
        return self.agent.policy(obs)


def small_agent(kind):
    """An agent in float64 whose actor has 3 hidden units, and observations."""
    _, _, agent, _ = setup(trpo, env_id=register(Count, kind=kind))
    agent.actor = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    agent.normalise = lambda obs: obs  # in float64, as all of it here
    return agent.double(), torch.randn(20, 2, dtype=torch.float64)


def fisher_of(agent, obs):
    """v → F v, at the agent as it is now."""
    agent = copy.deepcopy(agent)
    with torch.no_grad():
        old = copy.deepcopy(agent).policy(obs)
    kl_gradient = trpo.flat_gradient(trpo.kl_divergence(old, agent.policy(obs)).mean(),
                                     policy_parameters(agent), create_graph=True)
    assert kl_gradient.abs().max() < 1e-6
    return lambda v: trpo.fisher_vector_product(kl_gradient, policy_parameters(agent), v)


def matrix_of(agent, obs):
    """fisher_vector_product on every unit vector: its matrix."""
    fisher = fisher_of(agent, obs)
    return torch.stack([fisher(v) for v in torch.eye(len(theta(agent)), dtype=torch.float64)],
                       dim=1)


@KINDS
def test_fisher_vector_product_is_the_hessian_of_the_kl(kind):
    """F v for all v: the explicit Hessian of the mean KL."""
    agent, obs = small_agent(kind)
    with torch.no_grad():
        old = agent.policy(obs)

    def mean_kl(vector):
        return trpo.kl_divergence(old, PolicyOf(agent).at(vector, obs)).mean()

    hessian = torch.autograd.functional.hessian(mean_kl, theta(agent))
    assert hessian.abs().max() > 0.1 and len(hessian) == {"discrete": 17, "continuous": 19}[kind]
    torch.testing.assert_close(matrix_of(agent, obs), hessian)


def test_fisher_matrix_is_the_covariance_of_the_score():
    """F = E_s Σ_a π(a|s) ∇log π ∇log πᵀ: symmetric, positive semi-definite."""
    agent, obs = small_agent("discrete")

    def logprobs(vector):
        return PolicyOf(agent).at(vector, obs).logprobs.flatten()

    scores = torch.autograd.functional.jacobian(logprobs, theta(agent))  # (20 · 2, P)
    probabilities = logprobs(theta(agent)).exp()
    expected = (scores.T * probabilities) @ scores / len(obs)
    torch.testing.assert_close(matrix_of(agent, obs), expected)


@KINDS
def test_kl_is_pytorch_s(kind):
    """kl_divergence(old, new) is KL(old ‖ new), state by state; the other way round it is not."""
    torch.manual_seed(0)
    if kind == "discrete":
        a, b = 2 * torch.randn(2, 5, 4)
        ours = [trpo.Categorical(x) for x in (a, b)]
        theirs = [D.Categorical(logits=x) for x in (a, b)]
    else:
        (a, b), (s, t) = torch.randn(2, 5, 3), torch.randn(2, 3) * 0.5
        ours = [trpo.Gaussian(a, s), trpo.Gaussian(b, t)]
        theirs = [D.Independent(D.Normal(m, x.exp().expand(5, 3)), 1) for m, x in ((a, s), (b, t))]
    forward, backward = trpo.kl_divergence(*ours), trpo.kl_divergence(*ours[::-1])
    assert forward.shape == (5,)
    torch.testing.assert_close(forward, D.kl_divergence(*theirs))
    torch.testing.assert_close(backward, D.kl_divergence(*theirs[::-1]))
    assert ((forward - backward).abs() > 0.01).all()
    assert trpo.kl_divergence(ours[0], ours[0]).abs().max() < 1e-6


@KINDS
def test_kl_is_the_mean_log_ratio(kind):
    """E_{a ~ old}[log old(a) − log new(a)], within 5 standard errors."""
    torch.manual_seed(0)
    if kind == "discrete":
        old, new = trpo.Categorical(torch.randn(4)), trpo.Categorical(torch.randn(4))
    else:
        old, new = (trpo.Gaussian(torch.randn(3), torch.randn(3) * 0.3) for _ in range(2))
    copies = {old._fields[0]: old[0].expand(100_000, -1)}
    actions = old._replace(**copies).sample()
    ratio = old.log_prob(actions) - new.log_prob(actions)
    error = 5 * ratio.std().item() / math.sqrt(len(ratio))
    assert trpo.kl_divergence(old, new).item() == pytest.approx(ratio.mean().item(), abs=error)


# --------------------------------------------------------------------------------------------------
# The losses
# --------------------------------------------------------------------------------------------------
def test_policy_loss_by_hand():
    """−mean[ρ Â] with ρ = ½, 2 and 1; shapes must agree."""
    old = torch.tensor([-1.0, -2.0, -3.0])
    logprobs = old + torch.tensor([0.5, 2.0, 1.0]).log()
    advantages = torch.tensor([2.0, 3.0, -1.0])
    loss = trpo.policy_loss(logprobs, old, advantages)
    assert loss.item() == pytest.approx(-(0.5 * 2 + 2 * 3 - 1) / 3)
    with pytest.raises(AssertionError):
        trpo.policy_loss(logprobs, old, advantages[:, None])


@pytest.mark.parametrize("value, old, target, squared", [
    (1.1, 1.0, 2.0, 0.9**2),  # a change within ±ε: as without clipping
    (1.5, 1.0, 2.0, 0.8**2),  # a step to the target counts up to 1.2 only
    (0.5, 1.0, 2.0, 1.5**2),  # away from it, in full
    (1.5, 1.0, 0.0, 1.5**2)])
def test_value_loss_by_hand(value, old, target, squared):
    """½ mean of squares, each the larger of (V − R)² and that of V within ±ε (0.2) of V_old."""
    numbers = [torch.tensor([x, 0.0]) for x in (value, old, target)]  # the second's error is 0
    assert trpo.value_loss(*numbers, 0.2).item() == pytest.approx(squared / 4)
    assert trpo.value_loss(*numbers).item() == pytest.approx((value - target)**2 / 4)
    with pytest.raises(AssertionError):
        trpo.value_loss(numbers[0], numbers[1], numbers[2][:, None])


# --------------------------------------------------------------------------------------------------
# Conjugate gradients
# --------------------------------------------------------------------------------------------------
def spd(n, seed=0):
    """A symmetric positive definite matrix with eigenvalues from 0.1 to 10, and a vector."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    eigenvalues = torch.logspace(-1, 1, n, dtype=torch.float64)
    return q @ eigenvalues.diag() @ q.T, torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_conjugate_gradient_solves(n):
    """n iterations solve an n × n system; with fewer, each brings the error down."""
    for seed in range(5):
        A, b = spd(n, seed)
        exact, errors = torch.linalg.solve(A, b), []
        for iters in range(n + 1):
            off = trpo.conjugate_gradient(A.mv, b, iters) - exact
            errors.append((off @ A @ off).item())  # what each step of the method lowers
        assert errors[-1] < 1e-6 * errors[0]
        assert all(later < earlier for earlier, later in zip(errors, errors[1:])
                   if earlier > 1e-9)


def test_conjugate_gradient_counts_and_stops():
    """At most `iters` products; done when the residual is zero; b is left alone."""
    A, b = spd(20)
    kept, calls = b.clone(), []
    trpo.conjugate_gradient(lambda v: calls.append(1) or A @ v, b, 7)
    assert len(calls) == 7 and torch.equal(b, kept)
    calls.clear()
    x = trpo.conjugate_gradient(lambda v: calls.append(1) or 2 * v, b, 50)
    torch.testing.assert_close(x, b / 2)
    assert len(calls) <= 2  # one step solves a multiple of the identity
    calls.clear()
    A, b = spd(3)
    x = trpo.conjugate_gradient(lambda v: calls.append(1) or A @ v, b, 50)
    torch.testing.assert_close(A @ x, b, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3  # what rounding leaves of the residual is not solved for


def test_conjugate_gradient_is_linear_in_the_scale():
    """A b a million times smaller or larger gives just such an x: it stops at no fixed size."""
    A, b = spd(7)
    x = trpo.conjugate_gradient(A.mv, b, 7)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(trpo.conjugate_gradient(A.mv, scale * b, 7) / scale, x)


@pytest.mark.parametrize("A", [torch.zeros(3), -torch.ones(3), torch.tensor([1.0, 0.0, -1.0]),
                               torch.tensor([1e-30, 0.0, 0.0]), torch.ones(3)], ids=str)
def test_conjugate_gradient_is_finite(A):
    """Zero, negative or mixed curvature: no division by zero. b = 0 gives exactly 0."""
    x = trpo.conjugate_gradient(lambda v: A * v, torch.ones(3), 10)
    assert x.isfinite().all()
    assert torch.equal(trpo.conjugate_gradient(lambda v: A * v, torch.zeros(3), 10),
                       torch.zeros(3))


# --------------------------------------------------------------------------------------------------
# The line search
# --------------------------------------------------------------------------------------------------
def search(losses_at, args, start=0.1, step=1.0, loss_before=0.0):
    """line_search on one number → (fraction, the number before, the number after)."""
    parameter = nn.Parameter(torch.tensor([start]))
    before = parameter.detach().clone()
    losses = lambda: tuple(map(torch.as_tensor, losses_at(parameter.item() - start)))
    fraction, loss, kl = trpo.line_search(losses, [parameter], torch.tensor([step]),
                                          torch.tensor(loss_before), args)
    torch.testing.assert_close((loss, kl), losses(), equal_nan=True)  # where the parameter is now
    return fraction, before, parameter.detach()


def test_line_search_takes_the_longest_allowed_step():
    """KL = Δ² must be ≤ δ and the loss below what it was: the first of 1, ½, ¼ … with both."""
    args = trpo.Args(target_kl=0.3, backtrack_coef=0.5, backtrack_iters=5)
    downhill = lambda d: (-d, d * d)
    fraction, before, after = search(downhill, args)
    assert fraction == 0.5  # 1² > 0.3 ≥ 0.5²
    torch.testing.assert_close(after, before + 0.5)
    assert search(lambda d: (d * (d - 0.3), 0.0), args)[0] == 0.25  # below 0 only up to 0.3
    assert search(downhill, trpo.Args(target_kl=2.0))[0] == 1.0


@pytest.mark.parametrize("losses_at", [
    lambda d: (d, 0.0),  # the surrogate gets worse
    lambda d: (0.0, 0.0),  # or is no better
    lambda d: (-d, 1.0),  # the KL stays too large
    lambda d: (math.nan, 0.0), lambda d: (-d, math.nan)])
def test_failed_line_search_restores(losses_at):
    """No try is good enough: 0, and the parameter is what it was, bit for bit."""
    fraction, before, after = search(losses_at, trpo.Args(target_kl=0.01))
    assert fraction == 0 and torch.equal(after, before)


def test_line_search_gives_up_after_its_tries():
    """backtrack_iters counts the full step too; what the next try would accept is too late."""
    downhill = lambda d: (-d, d * d)
    allowed = {"target_kl": 0.3**2, "backtrack_coef": 0.5}  # 1, 0.5 and then 0.25 fits
    assert search(downhill, trpo.Args(backtrack_iters=2, **allowed))[0] == 0
    assert search(downhill, trpo.Args(backtrack_iters=3, **allowed))[0] == 0.25


# --------------------------------------------------------------------------------------------------
# The update
# --------------------------------------------------------------------------------------------------
@KINDS
def test_full_step_is_predicted_to_reach_delta(kind, monkeypatch):
    """½ sᵀFs = δ, s the step that the line search starts with; it goes uphill."""
    for target_kl, damping in ((0.01, 0.0), (0.05, 0.03), (0.05, 1.0)):
        args, agent, batch = prepared(kind, target_kl=target_kl, cg_damping=damping)
        fisher, seen = fisher_of(agent, batch.obs), watch(monkeypatch)
        trpo.policy_update(agent, batch, args)
        step = seen["step"]
        assert 0.5 * (step @ fisher(step)).item() == pytest.approx(target_kl, rel=1e-3)
        assert step @ seen["gradient"] > 0
        monkeypatch.undo()


@KINDS
def test_damping_is_a_share_of_the_curvature(kind, monkeypatch):
    """--cg-damping c adds c gᵀFg / gᵀg · v to F v, however large F is."""
    divergence = trpo.kl_divergence
    for scale in (0.01, 1, 100):
        for damping in (0.0, 0.25):
            args, agent, batch = prepared(kind, cg_damping=damping)
            fisher, seen = fisher_of(agent, batch.obs), watch(monkeypatch)
            monkeypatch.setattr(trpo, "kl_divergence", lambda *x: scale * divergence(*x))
            trpo.policy_update(agent, batch, args)
            monkeypatch.undo()
            g, v = seen["gradient"], torch.ones_like(seen["step"])
            curvature = scale * (g @ fisher(g)) / (g @ g)
            assert curvature > 0.01 * scale
            torch.testing.assert_close(seen["fisher"](v) - scale * fisher(v),
                                       damping * curvature * v,
                                       rtol=1e-3, atol=1e-3 * curvature.item())


@KINDS
def test_step_is_the_natural_gradient(kind, monkeypatch):
    """With enough iterations (F + c κ I) s is along the gradient of the surrogate."""
    args, agent, batch = prepared(kind, cg_iters=100, cg_damping=1e-3)
    loss = trpo.policy_loss(agent.policy(batch.obs).log_prob(batch.actions), batch.logprobs,
                            batch.advantages)
    uphill = -trpo.flat_gradient(loss, policy_parameters(agent))
    seen = watch(monkeypatch)
    metrics = trpo.policy_update(agent, batch, args)
    assert float(metrics["grad_norm"]) == pytest.approx(uphill.norm().item(), rel=1e-4)
    product = seen["fisher"](seen["step"])
    assert torch.cosine_similarity(product, uphill, dim=0) > 0.999
    assert torch.cosine_similarity(seen["step"], uphill, dim=0) < 0.99  # so F does something


@KINDS
def test_accepted_steps_stay_in_the_trust_region(kind):
    """KL(π_old ‖ π) ≤ δ and a better surrogate, computed anew, also where δ is large."""
    fractions = []
    for seed, target_kl in enumerate((0.001, 0.01, 0.1, 1.0), start=4):
        args, agent, batch = prepared(kind, target_kl=target_kl, cg_damping=1e-3, seed=seed)
        old = copy.deepcopy(agent)
        metrics = trpo.policy_update(agent, batch, args)
        (before, _), (after, kl) = loss_and_kl(old, old, batch), loss_and_kl(agent, old, batch)
        assert 0 < kl <= target_kl and after < before
        assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-4, abs=1e-7)
        assert float(metrics["policy_loss"]) == pytest.approx(after, abs=1e-5)
        fractions.append(metrics["step_fraction"])
    assert 0 < min(fractions) < 1, "some step had to be shortened, or this tests little"


@KINDS
def test_step_does_not_depend_on_the_scale_of_the_rewards(kind):
    """Advantages a thousand times larger or smaller: the same step."""
    steps = []
    for scale in (1.0, 1e3, 1e-3):
        args, agent, batch = prepared(kind, seed=2)  # whose KL is not near δ, where it could tip
        before = theta(agent)
        trpo.policy_update(agent, batch._replace(advantages=scale * batch.advantages), args)
        steps.append(theta(agent) - before)
    for step in steps[1:]:
        assert torch.cosine_similarity(step, steps[0], dim=0) > 0.999
        assert step.norm().item() == pytest.approx(steps[0].norm().item(), rel=0.01)


@KINDS
def test_failed_search_leaves_the_policy(kind, monkeypatch):
    """A step downhill is never accepted: each parameter stays, bit for bit, and it is logged."""
    args, agent, batch = prepared(kind)
    before, old, solve = theta(agent), copy.deepcopy(agent), trpo.conjugate_gradient
    monkeypatch.setattr(trpo, "conjugate_gradient", lambda *x: -solve(*x))
    metrics = trpo.policy_update(agent, batch, args)
    assert torch.equal(theta(agent), before)
    assert metrics["step_fraction"] == metrics["kl"] == 0
    assert metrics["policy_loss"] == pytest.approx(loss_and_kl(old, old, batch)[0], abs=1e-6)


@pytest.mark.parametrize("line_search", [True, False])
@KINDS
def test_no_gradient_no_step(kind, line_search):
    """Advantages of zero: nothing to gain, nothing moves, nothing is NaN."""
    args, agent, batch = prepared(kind, line_search=line_search)
    before = theta(agent)
    metrics = trpo.policy_update(agent, batch._replace(advantages=torch.zeros(64)), args)
    assert torch.equal(theta(agent), before)
    assert all(math.isfinite(x) for x in metrics.values())


@KINDS
def test_without_line_search_the_full_step_is_taken(kind, monkeypatch):
    """The natural policy gradient: all of the step, beyond δ and even downhill."""
    seed = {"discrete": 6, "continuous": 7}[kind]
    for sign in (1, -1):
        args, agent, batch = prepared(kind, line_search=False, target_kl=0.1, cg_damping=1e-3,
                                      seed=seed)
        before, solve = theta(agent), trpo.conjugate_gradient
        loss_before, _ = loss_and_kl(agent, copy.deepcopy(agent), batch)
        monkeypatch.setattr(trpo, "conjugate_gradient", lambda *x: sign * solve(*x))
        seen = watch(monkeypatch)
        metrics = trpo.policy_update(agent, batch, args)
        monkeypatch.undo()
        torch.testing.assert_close(theta(agent), before + seen["step"])
        assert metrics["step_fraction"] == 1
        assert sign < 0 or metrics["kl"] > 0.1
    assert metrics["policy_loss"] > loss_before


@KINDS
def test_actor_and_critic_learn_apart(kind):
    """policy_update moves the policy's parameters only, critic_update the critic's only."""
    args, agent, batch = prepared(kind)
    optimizer = make_optimizer(trpo, agent, args)
    for step, moves in ((lambda: trpo.policy_update(agent, batch, args), "policy"),
                        (lambda: trpo.critic_update(agent, optimizer, batch, args), "critic")):
        before = copy.deepcopy(agent.state_dict())
        step()
        for name, p in agent.named_parameters():
            part = "critic" if name.startswith("critic") else "policy"
            assert torch.equal(p, before[name]) == (part != moves), name
        assert all(torch.equal(x, before[name]) for name, x in agent.named_buffers())


@KINDS
def test_critic_learns_the_returns(kind):
    """Its loss falls, also with clipping of its change."""
    for clip_vloss in (False, True):
        args, agent, batch = prepared(kind, critic_epochs=20, learning_rate=3e-3,
                                      clip_vloss=clip_vloss)
        batch = batch._replace(returns=torch.linspace(-0.5, 0.5, 64))
        before = trpo.value_loss(agent.value(batch.obs), batch.values, batch.returns).item()
        trpo.critic_update(agent, make_optimizer(trpo, agent, args), batch, args)
        after = trpo.value_loss(agent.value(batch.obs), batch.values, batch.returns).item()
        assert after < before


@KINDS
def test_critic_goes_down_its_loss(kind):
    """critic_step's gradient is that of value_loss, clipped with --clip-vloss only."""
    args, agent, batch = prepared(kind, max_grad_norm=0.0, clip_coef=0.1)
    values = agent.value(batch.obs)
    off = 0.3 * torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)  # so that clipping bites
    minibatch = [batch.obs, values.detach() + off, batch.returns]
    found = {}
    for clip in (False, True):
        args.clip_vloss = clip
        found[clip], norm = critic_gradient(agent, minibatch, args)
        loss = trpo.value_loss(values, *minibatch[1:], 0.1 if clip else None)
        expected = trpo.flat_gradient(loss, list(agent.critic.parameters()), retain_graph=True)
        torch.testing.assert_close(found[clip], expected, rtol=1e-4, atol=1e-6)
        assert norm.item() == pytest.approx(expected.norm().item(), rel=1e-4)
    assert (found[True] - found[False]).norm() > 0.1 * found[False].norm()


@KINDS
def test_critic_gradient_clipping(kind):
    """Scaled to max_grad_norm if it is longer, 0 leaves it; the norm told is the one before."""
    args, agent, batch = prepared(kind, max_grad_norm=0.0)
    minibatch = [batch.obs, batch.values, batch.returns]
    raw, length = critic_gradient(agent, minibatch, args)
    for limit, factor in ((length.item() / 4, 0.25), (length.item() * 4, 1.0)):
        args.max_grad_norm = limit
        clipped, norm = critic_gradient(agent, minibatch, args)
        torch.testing.assert_close(clipped, factor * raw, rtol=1e-3, atol=1e-7)
        assert norm == length


def test_critic_visits_each_sample_once_per_epoch(monkeypatch):
    """K epochs of equal minibatches, each epoch a new permutation of all B transitions; the norm
    that is logged is the mean of all steps."""
    args, agent, batch = prepared("discrete", critic_epochs=3, num_minibatches=4)
    batch = batch._replace(obs=torch.arange(64.0)[:, None].repeat(1, 2).double())  # its number
    seen = []
    monkeypatch.setattr(trpo, "critic_step", lambda optimizer, args, state, minibatch:
                        seen.append(minibatch[0]) or (state, [torch.tensor(float(len(seen)**2))]))
    metrics = trpo.critic_update(agent, make_optimizer(trpo, agent, args), batch, args)
    mean = sum(k * k for k in range(1, 13)) / 12
    assert metrics["critic_grad_norm"].item() == pytest.approx(mean)
    assert [len(obs) for obs in seen] == [16] * 4 * 3
    epochs = torch.cat(seen)[:, 0].view(3, 64)
    assert torch.equal(epochs.sort(-1)[0], torch.arange(64.0).double().expand(3, 64))
    assert len(set(map(tuple, epochs.tolist()))) == 3


@KINDS
def test_a_critic_step_changes_nothing_in_place(kind):
    """critic_step is a function: neither the state nor the minibatch is another after it."""
    args, agent, batch = prepared(kind)
    optimizer = make_optimizer(trpo, agent, args)
    minibatch = [batch.obs, batch.values, batch.returns]
    before = [x.clone() for x in (*optimizer.state, *minibatch)]
    after, _ = trpo.critic_step(optimizer, args, optimizer.state, minibatch)
    assert all(torch.equal(x, y) for x, y in zip(before, (*optimizer.state, *minibatch)))
    assert not torch.equal(after[0], before[0])


@pytest.mark.parametrize("norm_adv", [True, False])
@KINDS
def test_update(kind, norm_adv):
    """A whole update: the critic does not shift π after the search; metrics are finite floats."""
    args, envs, agent, obs = setup(trpo, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   num_steps=32, norm_adv=norm_adv)
    rollout, _ = trpo.collect_rollout(agent, envs, obs, args)
    old, batch = copy.deepcopy(agent), trpo.make_batch(copy.deepcopy(agent), rollout, args)
    metrics = learn(trpo, agent, make_optimizer(trpo, agent, args), rollout, args)
    assert all(type(x) is float and math.isfinite(x) for x in metrics.values())
    old.obs_stats = agent.obs_stats = trpo.RunningStats((2,))  # they were those of π_old
    _, kl = loss_and_kl(agent, old, batch)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-7) and 0 < kl <= args.target_kl
    ratio = (agent.policy(batch.obs).log_prob(batch.actions) - batch.logprobs).exp()
    assert metrics["ratio_min"] == pytest.approx(ratio.min().item(), rel=1e-4) and ratio.min() < 1
    assert metrics["ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-4) and ratio.max() > 1
    assert metrics["grad_norm"] > 0 and metrics["policy_loss"] < loss_and_kl(old, old, batch)[0]


@KINDS
def test_metrics_are_over_the_whole_batch(kind):
    """The values' loss and the entropy are those after the update, the explained variance is of
    the values before it."""
    args, agent, batch = prepared(kind, learning_rate=3e-3, target_kl=0.5)
    batch = batch._replace(returns=batch.returns + 0.5)  # else the mean of the errors is near 0
    entropy_before = agent.policy(batch.obs).entropy().mean().item()
    metrics = trpo.update(agent, make_optimizer(trpo, agent, args), batch, args)
    values, entropy = agent.value(batch.obs).detach(), agent.policy(batch.obs).entropy()
    assert metrics["value_loss"] == pytest.approx(
        0.5 * (values - batch.returns).square().mean().item(), rel=1e-4)
    assert (values - batch.values).abs().max() > 0.05
    assert metrics["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert abs(metrics["entropy"] - entropy_before) > 1e-3
    spread = batch.returns.var().item()
    unexplained = (batch.returns - batch.values).var().item() / spread
    assert metrics["explained_variance"] == pytest.approx(1 - unexplained, rel=1e-4, abs=1e-5)


@KINDS
def test_delta_falls_with_the_learning_rate(kind):
    """At a tenth of --learning-rate the step is one for δ/10; at all of it, for δ, to the digit."""
    kls = {}
    for share in (1.0, 0.1):
        args, envs, agent, obs = setup(trpo, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                       num_steps=32, cg_damping=1e-3, line_search=False)
        rollout, _ = trpo.collect_rollout(agent, envs, obs, args)
        optimizer, seen = make_optimizer(trpo, agent, args), []
        optimizer.lr.fill_(share * args.learning_rate)
        with pytest.MonkeyPatch.context() as patch:
            search = trpo.line_search
            patch.setattr(trpo, "line_search",
                          lambda *x: seen.append(x[-1].target_kl) or search(*x))
            kls[share] = learn(trpo, agent, optimizer, rollout, args)["kl"]
        assert seen == [pytest.approx(share * args.target_kl, rel=1e-6)]
        assert share < 1 or seen == [args.target_kl]
    assert kls[0.1] == pytest.approx(0.1 * kls[1.0], rel=0.2)


# --------------------------------------------------------------------------------------------------
# Relations
# --------------------------------------------------------------------------------------------------
@KINDS
def test_with_f_identity_the_step_is_the_policy_gradient(kind, monkeypatch):
    """F = I: a step of length √(2δ) along a2c.py's gradient."""
    args, agent, batch = prepared(kind, line_search=False)
    loss = a2c.policy_loss(agent.policy(batch.obs).log_prob(batch.actions), batch.advantages)
    uphill = -trpo.flat_gradient(loss, policy_parameters(agent))
    monkeypatch.setattr(trpo, "fisher_vector_product",
                        lambda kl_gradient, parameters, v: v)
    before = theta(agent)
    trpo.policy_update(agent, batch, args)
    step = theta(agent) - before
    assert torch.cosine_similarity(step, uphill, dim=0).item() == pytest.approx(1, abs=1e-5)
    assert step.norm().item() == pytest.approx(math.sqrt(2 * args.target_kl), rel=1e-3)


def test_natural_gradient_does_not_depend_on_the_parameters():
    """UW's example: L = θ₁ + θ₂ = √φ₁ + 1/φ₂. The plain step of the policy is another in θ and φ.

    The policy is a Gaussian of mean θ, whose expected reward is L.
    """
    at_theta = torch.tensor([2.0, 0.5], dtype=torch.float64)
    log_std = torch.tensor([-0.5, 0.3], dtype=torch.float64)
    ways = {"theta": (at_theta, lambda p: p),
            "phi": (torch.stack([at_theta[0]**2, 1 / at_theta[1]]),
                    lambda p: torch.stack([p[0].sqrt(), 1 / p[1]]))}
    plain, natural, gradients = {}, {}, {}
    for name, (start, mean_of) in ways.items():
        p = nn.Parameter(start.clone())
        gradient = trpo.flat_gradient(mean_of(p).sum(), [p])
        old, new = trpo.Gaussian(mean_of(start), log_std), trpo.Gaussian(mean_of(p), log_std)
        kl_gradient = trpo.flat_gradient(trpo.kl_divergence(old, new), [p], create_graph=True)
        fisher = functools.partial(trpo.fisher_vector_product, kl_gradient, [p])
        x = trpo.conjugate_gradient(fisher, gradient, 10)
        gradients[name] = gradient
        plain[name], natural[name] = (  # how the policy's mean moves
            torch.autograd.functional.jvp(mean_of, start, step)[1] for step in (gradient, x))
    torch.testing.assert_close(gradients["theta"], torch.ones(2).double())
    torch.testing.assert_close(gradients["phi"], torch.tensor([0.5 / 2.0, -0.5**2]).double())
    assert (plain["phi"] - plain["theta"]).abs().min() > 0.1
    torch.testing.assert_close(natural["phi"], natural["theta"])
    torch.testing.assert_close(natural["theta"], (2 * log_std).exp())
