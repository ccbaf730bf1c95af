"""Section 7: minibatches, the optimiser, the end of an update, and its metrics."""
import copy
import shutil

import pytest
import torch
from conftest import ACTOR_CRITIC, PPO, SCRIPTS, Count, each, each_kind, register, setup

METRICS = {"policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "ratio_min",
           "ratio_max", "explained_variance", "grad_norm", "gradient_steps"}


def prepared(script, kind, **changes):
    """args, agent, optimiser and one rollout in Count environments; B = 32, M = 8, K = 2."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   **({"num_steps": 16, "num_minibatches": 4} | changes))
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    return args, agent, script.make_optimizer(agent, args), rollout


def parameters(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


def watch_steps(script, agent, monkeypatch):
    """Lists that fill with each minibatch's indices and the parameters before its step."""
    indices, before, step = [], [], script.minibatch_step

    def watched(agent, optimizer, batch, args, idx):
        indices.append(idx)
        before.append(parameters(agent))
        return step(agent, optimizer, batch, args, idx)

    monkeypatch.setattr(script, "minibatch_step", watched)
    return indices, before


@each_kind(PPO)
def test_each_sample_once_per_epoch(script, kind, monkeypatch):
    """K epochs of equal minibatches, each epoch a new permutation of all B transitions."""
    args, agent, optimizer, rollout = prepared(script, kind, update_epochs=3)
    indices, _ = watch_steps(script, agent, monkeypatch)
    script.update(agent, optimizer, rollout, args)
    assert [len(idx) for idx in indices] == [8] * 4 * 3
    epochs = torch.cat(indices).view(3, 32)
    assert torch.equal(epochs.sort(-1)[0], torch.arange(32).expand(3, 32))
    assert len(set(map(tuple, epochs.tolist()))) == 3


@each_kind(PPO)
def test_every_parameter_learns(script, kind):
    """One update moves every layer of both networks (and log σ)."""
    args, agent, optimizer, rollout = prepared(script, kind)
    before = copy.deepcopy(dict(agent.named_parameters()))
    script.update(agent, optimizer, rollout, args)
    assert all(not torch.equal(p, before[name]) for name, p in agent.named_parameters())


@each_kind(PPO)
def test_target_kl_stops_before_the_offending_step(script, kind, monkeypatch):
    """The minibatch that begins beyond target_kl is not learned from: nothing moves after it."""
    args, agent, optimizer, rollout = prepared(script, kind, learning_rate=0.01)
    free_agent = copy.deepcopy(agent)
    free_optimizer = script.make_optimizer(free_agent, args)
    _, before = watch_steps(script, free_agent, monkeypatch)
    torch.manual_seed(5)
    assert script.update(free_agent, free_optimizer, rollout, args)["gradient_steps"] == 8
    monkeypatch.undo()
    args.target_kl = 1e-7
    torch.manual_seed(5)
    metrics = script.update(agent, optimizer, rollout, args)
    assert metrics["gradient_steps"] == 1
    assert torch.equal(parameters(agent), before[1])
    assert metrics["approx_kl"] > 1e-7


@each_kind(PPO)
def test_large_target_kl_does_not_stop(script, kind):
    """A target_kl that is never reached changes nothing."""
    args, agent, optimizer, rollout = prepared(script, kind, target_kl=1e6)
    assert script.update(agent, optimizer, rollout, args)["gradient_steps"] == 8


@each_kind(PPO)
def test_metrics_are_over_the_whole_batch(script, kind):
    """Each metric is what the new policy gives on all B transitions, not on the last minibatch."""
    args, agent, optimizer, rollout = prepared(
        script, kind, norm_obs=False, norm_reward=False, norm_adv=False, learning_rate=0.01,
        gae_lambda=0.95, update_epochs=4, clip_coef=0.2)
    batch = script.make_batch(agent, rollout, args)
    metrics = script.update(agent, optimizer, rollout, args)
    assert METRICS <= metrics.keys() and all(type(x) is float for x in metrics.values())
    with torch.no_grad():
        policy, values = agent.policy(batch.obs), agent.value(batch.obs)
        log_ratio = policy.log_prob(batch.actions) - batch.logprobs
    ratio, adv = log_ratio.exp(), batch.advantages
    expected = {
        "policy_loss": -torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean(),
        "value_loss": 0.5 * (values - batch.returns).square().mean(),
        "entropy": policy.entropy().mean().detach(),
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clipfrac": ((ratio < 0.8) | (ratio > 1.2)).float().mean(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "gradient_steps": 16,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert 0 < metrics["clipfrac"] < 1  # the rates were chosen so that some ratios are clipped


@each_kind(PPO)
def test_advantages_are_standardised_over_the_batch(script, kind, monkeypatch):
    """norm_adv: mean 0 and std 1 over all B; off: as GAE gave them."""
    for norm_adv in (True, False):
        args, agent, optimizer, rollout = prepared(script, kind, norm_adv=norm_adv,
                                                   norm_reward=False)
        expected = script.make_batch(agent, rollout, args).advantages
        seen = []
        monkeypatch.setattr(script, "diagnostics", lambda a, batch, *_: seen.append(batch))
        script.update(agent, optimizer, rollout, args)
        monkeypatch.undo()
        if norm_adv:
            expected = (expected - expected.mean()) / expected.std()
        torch.testing.assert_close(seen[0].advantages, expected)


@pytest.mark.parametrize("values, expected", [
    ([1.0, 2.0, 3.0, 6.0], 1.0),  # a perfect critic
    ([3.0, 3.0, 3.0, 3.0], 0.0),  # as good as a constant
    ([0.5, 1.0, 1.5, 3.0], 0.75),  # half of it: with returns and values swapped this would be 0
    ([-1.0, -2.0, -3.0, -6.0], -3.0),
])
@each_kind(PPO)
def test_explained_variance(script, kind, values, expected):
    """1 − Var[R − V] / Var[R], of the values before the update."""
    args, agent, optimizer, _ = prepared(script, kind)
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    actions = torch.zeros(4) if kind == "discrete" else torch.zeros(4, 2)
    batch = script.Batch(torch.zeros(4, 2), actions, torch.zeros(4), torch.tensor(values),
                         torch.zeros(4), returns)
    metrics = script.diagnostics(agent, batch, [], args)
    assert metrics["explained_variance"] == pytest.approx(expected, abs=1e-6)


@each_kind(PPO)
def test_gradient_norm_is_the_mean_before_clipping(script, kind, monkeypatch):
    """grad_norm is the mean of the norms that minibatch_step returns."""
    args, agent, optimizer, rollout = prepared(script, kind, max_grad_norm=1e-3)
    norms, step = [], script.minibatch_step
    monkeypatch.setattr(script, "minibatch_step",
                        lambda *x: norms.append(step(*x)) or norms[-1])
    metrics = script.update(agent, optimizer, rollout, args)
    assert metrics["grad_norm"] == pytest.approx(torch.stack(norms).mean().item())
    assert metrics["grad_norm"] > 1e-2


@each_kind(ACTOR_CRITIC)
def test_batch_carries_no_gradient(script, kind):
    """Old log-probabilities, values, advantages and targets are constants."""
    args, agent, _, rollout = prepared(script, kind)
    assert not any(x.requires_grad for x in script.make_batch(agent, rollout, args))


@pytest.mark.parametrize("rate", [1e-3, 0.1])
@each_kind(PPO)
def test_adam_equals_pytorch_s(script, kind, rate):
    """Ten steps on random gradients, with a learning rate that changes: torch.optim.Adam's."""
    args, agent, optimizer, _ = prepared(script, kind, learning_rate=rate)
    theta = torch.nn.Parameter(parameters(agent))
    theirs = torch.optim.Adam([theta], lr=rate, eps=1e-5)
    for k in range(10):
        gradient = torch.randn_like(theta) * 10.0 ** -(k % 4)
        theta.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = rate / (k + 1)
        optimizer.lr.fill_(rate / (k + 1))
        theirs.step()
        optimizer.step(gradient)
    torch.testing.assert_close(parameters(agent), theta.detach(), rtol=1e-5, atol=1e-6)


@each_kind(PPO)
def test_optimizer_shares_the_parameters_memory(script, kind):
    """θ is the layers' weights, also after an update and after loading a state_dict."""
    args, agent, optimizer, rollout = prepared(script, kind)
    saved = copy.deepcopy(agent.state_dict())
    script.update(agent, optimizer, rollout, args)
    assert torch.equal(parameters(agent), optimizer.theta)
    agent.load_state_dict(saved)
    assert torch.equal(parameters(agent), optimizer.theta)
    names = [name for name, _ in agent.named_parameters()]
    assert torch.equal(optimizer.theta, torch.cat([saved[name].flatten() for name in names]))
    optimizer.theta.zero_()
    assert all((p == 0).all() for p in agent.parameters())


@each_kind(SCRIPTS)
def test_optimizer_state_round_trip(script, kind):
    """A loaded optimiser goes on just as the saved one would have."""
    args, agent, optimizer, rollout = prepared(script, kind, norm_obs=False, norm_reward=False)
    script.update(agent, optimizer, rollout, args)
    twin = copy.deepcopy(agent)
    twin_optimizer = script.make_optimizer(twin, args)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((agent, optimizer), (twin, twin_optimizer)):
        torch.manual_seed(7)
        script.update(one, its_optimizer, rollout, args)
    assert torch.equal(parameters(agent), parameters(twin))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))),
                    reason="torch.compile needs a C++ compiler")
@each_kind([s for s in SCRIPTS if hasattr(s.Args, "compile")])
def test_compiled_equals_eager(script, kind):
    """--compile: the same metrics and the same parameters after an update, to 1e-5. (Slow.)"""
    args, agent, optimizer, rollout = prepared(script, kind, ent_coef=0.01, norm_reward=False)
    results = []
    for compile_it in (False, True):
        args.compile, twin = compile_it, copy.deepcopy(agent)
        torch.manual_seed(3)
        metrics = script.update(twin, script.make_optimizer(twin, args), rollout, args)
        results.append((parameters(twin), metrics))
    (eager, eager_metrics), (compiled, compiled_metrics) = results
    assert not torch.equal(eager, parameters(agent))
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=0)
    for name, value in eager_metrics.items():
        assert compiled_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
