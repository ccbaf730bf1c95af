"""Section 6: minibatches, the optimiser, the end of an update, and its metrics."""
import copy
import shutil
import sys
import types

import pytest
import torch
from conftest import (
    ACTOR_CRITIC,
    PPO,
    ROOT,
    SCRIPTS,
    Count,
    each,
    each_kind,
    learn,
    make_optimizer,
    register,
    setup,
)

METRICS = {"policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "ratio_min",
           "ratio_max", "explained_variance", "grad_norm", "gradient_steps"}
COMPILES = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))),
                              reason="torch.compile needs a C++ compiler")


def prepared(script, kind, **changes):
    """args, agent, optimiser and one rollout in Count environments; B = 32, M = 8, K = 2."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   **({"num_steps": 16, "num_minibatches": 4} | changes))
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    return args, agent, make_optimizer(script, agent, args), rollout


def parameters(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


def watch_steps(script, agent, monkeypatch):
    """Lists that fill with each minibatch's observations and the parameters before its step."""
    seen, before, step = [], [], script.minibatch_step

    def watched(optimizer, args, state, minibatch):
        seen.append(minibatch[0])
        before.append(parameters(agent))
        return step(optimizer, args, state, minibatch)

    monkeypatch.setattr(script, "minibatch_step", watched)
    return seen, before


@each_kind(PPO)
def test_each_sample_once_per_epoch(script, kind, monkeypatch):
    """K epochs of equal minibatches, each epoch a new permutation of all B transitions."""
    args, agent, optimizer, rollout = prepared(script, kind, update_epochs=3)
    batch = script.make_batch(agent, rollout, args)
    batch = batch._replace(obs=torch.arange(32.0)[:, None].repeat(1, 2).double())  # its number
    seen, _ = watch_steps(script, agent, monkeypatch)
    script.update(agent, optimizer, batch, args)
    assert [len(obs) for obs in seen] == [8] * 4 * 3
    epochs = torch.cat(seen)[:, 0].view(3, 32)
    assert torch.equal(epochs.sort(-1)[0], torch.arange(32.0).double().expand(3, 32))
    assert len(set(map(tuple, epochs.tolist()))) == 3


@each_kind(PPO)
def test_every_parameter_learns(script, kind):
    """One update moves every layer of both networks (and log σ)."""
    args, agent, optimizer, rollout = prepared(script, kind)
    before = copy.deepcopy(dict(agent.named_parameters()))
    learn(script, agent, optimizer, rollout, args)
    assert all(not torch.equal(p, before[name]) for name, p in agent.named_parameters())


@each_kind(PPO)
def test_target_kl_stops_before_the_offending_step(script, kind, monkeypatch):
    """The minibatch that begins beyond target_kl is not learned from: nothing moves after it."""
    args, agent, optimizer, rollout = prepared(script, kind, learning_rate=0.01)
    free_agent = copy.deepcopy(agent)
    free_optimizer = make_optimizer(script, free_agent, args)
    _, before = watch_steps(script, free_agent, monkeypatch)
    torch.manual_seed(5)
    metrics = learn(script, free_agent, free_optimizer, rollout, args)
    assert metrics["gradient_steps"] == 8
    monkeypatch.undo()
    args.target_kl = 1e-7
    torch.manual_seed(5)
    metrics = learn(script, agent, optimizer, rollout, args)
    assert metrics["gradient_steps"] == 1
    assert torch.equal(parameters(agent), before[1])
    assert metrics["approx_kl"] > 1e-7


@each_kind(PPO)
def test_large_target_kl_does_not_stop(script, kind):
    """A target_kl that is never reached changes nothing."""
    args, agent, optimizer, rollout = prepared(script, kind, target_kl=1e6)
    assert learn(script, agent, optimizer, rollout, args)["gradient_steps"] == 8


@each_kind(PPO)
def test_metrics_are_over_the_whole_batch(script, kind):
    """Each metric is what the new policy gives on all B transitions, not on the last minibatch."""
    args, agent, optimizer, rollout = prepared(
        script, kind, norm_obs=False, norm_reward=False, norm_adv=False, learning_rate=0.01,
        gae_lambda=0.95, update_epochs=4, clip_coef=0.2)
    batch = script.make_batch(agent, rollout, args)
    metrics = script.update(agent, optimizer, batch, args)
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


@each_kind(ACTOR_CRITIC)
def test_advantages_are_standardised_over_the_batch(script, kind):
    """norm_adv: mean 0 and std 1 over all B, the targets stay; off: as GAE gave them."""
    args, agent, _, rollout = prepared(script, kind, norm_adv=False, norm_reward=False)
    plain = script.make_batch(agent, rollout, args)
    torch.testing.assert_close(plain.returns, plain.advantages + plain.values)
    args.norm_adv = True
    standard = script.make_batch(agent, rollout, args)
    expected = (plain.advantages - plain.advantages.mean()) / plain.advantages.std()
    torch.testing.assert_close(standard.advantages, expected)
    torch.testing.assert_close(standard.returns, plain.returns)


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
    metrics = script.diagnostics(agent, batch, torch.ones(1), args)
    assert metrics["explained_variance"] == pytest.approx(expected, abs=1e-6)


@each_kind(PPO)
def test_gradient_norm_is_the_mean_before_clipping(script, kind, monkeypatch):
    """grad_norm is the mean of the norms that minibatch_step returns."""
    args, agent, optimizer, rollout = prepared(script, kind, max_grad_norm=1e-3)
    norms, step = [], script.minibatch_step

    def watched(*x):
        state, (norm, taken) = step(*x)
        norms.append(norm)
        return state, [norm, taken]

    monkeypatch.setattr(script, "minibatch_step", watched)
    metrics = learn(script, agent, optimizer, rollout, args)
    assert metrics["grad_norm"] == pytest.approx(torch.stack(norms).mean().item())
    assert metrics["grad_norm"] > 1e-2


@each_kind(ACTOR_CRITIC)
def test_batch_carries_no_gradient(script, kind):
    """Old log-probabilities, values, advantages and targets are constants."""
    args, agent, _, rollout = prepared(script, kind)
    assert not any(x.requires_grad for x in script.make_batch(agent, rollout, args))


@pytest.mark.parametrize("rate", [1e-3, 0.1])
@each([s for s in SCRIPTS if hasattr(s, "adam")])
def test_adam_equals_pytorch_s(script, rate):
    """Ten steps on random gradients, with a learning rate that changes: torch.optim.Adam's."""
    theta = torch.nn.Parameter(torch.randn(50))
    theirs = torch.optim.Adam([theta], lr=rate, eps=1e-5)
    state = [theta.detach().clone(), torch.zeros(50), torch.zeros(50), torch.zeros(())]
    for k in range(10):
        gradient = torch.randn(50) * 10.0 ** -(k % 4)
        theta.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = rate / (k + 1)
        theirs.step()
        state = script.adam(state, gradient, torch.tensor(rate / (k + 1)))
    torch.testing.assert_close(state[0], theta.detach(), rtol=1e-5, atol=3e-5 * rate)


@each_kind(PPO)
def test_optimizer_shares_the_parameters_memory(script, kind):
    """θ is the layers' weights, also after an update and after loading a state_dict."""
    args, agent, optimizer, rollout = prepared(script, kind)
    saved = copy.deepcopy(agent.state_dict())
    learn(script, agent, optimizer, rollout, args)
    assert torch.equal(parameters(agent), optimizer.state[0])
    agent.load_state_dict(saved)
    assert torch.equal(parameters(agent), optimizer.state[0])
    names = [name for name, _ in agent.named_parameters()]
    assert torch.equal(optimizer.state[0], torch.cat([saved[name].flatten() for name in names]))
    optimizer.state[0].zero_()
    assert all((p == 0).all() for p in agent.parameters())


@each_kind(SCRIPTS)
def test_optimizer_state_round_trip(script, kind):
    """A loaded optimiser goes on just as the saved one would have."""
    args, agent, optimizer, rollout = prepared(script, kind, norm_obs=False, norm_reward=False)
    learn(script, agent, optimizer, rollout, args)
    twin = copy.deepcopy(agent)
    twin_optimizer = make_optimizer(script, twin, args)
    saved = [x.clone() for x in optimizer.state]
    twin_optimizer.once(lambda *_: (saved, None), [])
    for one, its_optimizer in ((agent, optimizer), (twin, twin_optimizer)):
        torch.manual_seed(7)
        learn(script, one, its_optimizer, rollout, args)
    assert torch.equal(parameters(agent), parameters(twin))


@each_kind(PPO)
def test_a_step_changes_nothing_in_place(script, kind):
    """minibatch_step is a function: neither the state nor the minibatch is another after it."""
    args, agent, optimizer, rollout = prepared(script, kind)
    batch = script.make_batch(agent, rollout, args)
    before = [x.clone() for x in (*optimizer.state, *batch)]
    after, _ = script.minibatch_step(optimizer, args, optimizer.state, list(batch))
    assert all(torch.equal(x, y) for x, y in zip(before, (*optimizer.state, *batch)))
    assert not torch.equal(after[0], before[0])


@each_kind(PPO)
def test_frozen_parameters_stay(script, kind):
    """What does not require a gradient is not part of θ, and the update leaves it alone."""
    args, agent, _, rollout = prepared(script, kind)
    agent.actor[0].requires_grad_(False)
    frozen = agent.actor[0].weight.clone()
    optimizer = make_optimizer(script, agent, args)
    left_out = sum(p.numel() for p in agent.actor[0].parameters())
    assert len(optimizer.state[0]) == len(parameters(agent)) - left_out
    learn(script, agent, optimizer, rollout, args)
    assert torch.equal(agent.actor[0].weight, frozen)


@each([s for s in SCRIPTS if s.__name__ != "reinforce"])
def test_compile_that_fails(script, monkeypatch, capsys):
    """One line says so, and the numbers are those without --compile."""
    kind = "continuous" if script.__name__ == "ppo_continuous" else "discrete"
    args, agent, _, rollout = prepared(script, kind)
    thetas = []
    for compile_it in (False, True):
        args.compile, twin = compile_it, copy.deepcopy(agent)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", lambda *_, **__: 1 / 0)
            torch.manual_seed(3)
            learn(script, twin, make_optimizer(script, twin, args), rollout, args)
        thetas.append(parameters(twin))
    assert torch.equal(*thetas)
    assert "it failed, so the run goes on without it" in capsys.readouterr().out


SETTINGS = {  # what --compile is compared with: everything on, and an update that stops half-way
    "all on": {"ent_coef": 0.01, "clip_vloss": True, "max_grad_norm": 0.5},
    "target_kl": {"target_kl": 2e-3, "learning_rate": 1e-3}}


@COMPILES
@pytest.mark.parametrize("script, kind, settings", [
    *((s, "discrete", "all on") for s in SCRIPTS if s.__name__ in ("ppo_discrete", "a2c", "trpo")),
    *((s, "continuous", name) for s in SCRIPTS if s.__name__ == "ppo_continuous"
      for name in SETTINGS)], ids=lambda x: getattr(x, "__name__", x))
def test_compiled_equals_eager(script, kind, settings, capsys):
    """--compile: the same metrics and the same parameters after two updates, to 1e-5. (Slow.)"""
    args, agent, _, rollout = prepared(script, kind, norm_reward=False, update_epochs=4,
                                       **SETTINGS[settings])
    results = []
    for compile_it in (False, True):
        args.compile, twin = compile_it, copy.deepcopy(agent)
        optimizer = make_optimizer(script, twin, args)
        torch.manual_seed(3)
        learn(script, twin, optimizer, rollout, args)
        metrics = learn(script, twin, optimizer, rollout, args)
        results.append((parameters(twin), metrics))
    (eager, eager_metrics), (compiled, compiled_metrics) = results
    out = capsys.readouterr().out
    assert "compiling" in out and "failed" not in out, out
    assert not torch.equal(eager, parameters(agent))
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=0)
    for name, value in eager_metrics.items():
        assert compiled_metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert settings != "target_kl" or 1 < eager_metrics["gradient_steps"] < 16


LAST_LINE = "    return [theta - lr * m_hat / (v_hat.sqrt() + 1e-5), m, v, k]\n"
SWAPS = {
    "sgd": ("    return [theta - lr * gradient, m, v, k]\n",
            lambda p: torch.optim.SGD(p, lr=0.01)),
    "adamw": ("    return [theta - lr * (m_hat / (v_hat.sqrt() + 1e-5) + 0.1 * theta), m, v, k]\n",
              lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-5, weight_decay=0.1))}


@COMPILES
@pytest.mark.parametrize("name, compile_it", [("sgd", False), ("adamw", False), ("sgd", True)])
def test_the_optimiser_is_one_line(name, compile_it):
    """With adam's last line replaced an update is that of torch.optim's SGD or AdamW."""
    line, theirs = SWAPS[name]
    text = (ROOT / "ppo_continuous.py").read_text()
    assert text.count(LAST_LINE) == 1
    script = types.ModuleType("ppo_continuous_swapped")
    script.__file__ = str(ROOT / "ppo_continuous.py")
    sys.modules[script.__name__] = script
    exec(compile(text.replace(LAST_LINE, line), script.__file__, "exec"), script.__dict__)
    args, agent, _, rollout = prepared(script, "continuous", learning_rate=0.01,
                                       num_minibatches=1, update_epochs=3)
    twin, batch = copy.deepcopy(agent), script.make_batch(copy.deepcopy(agent), rollout, args)
    args.compile = compile_it
    script.update(agent, make_optimizer(script, agent, args), batch, args)
    optimizer = theirs(twin.parameters())
    for _ in range(3):
        policy = twin.policy(batch.obs)
        loss = script.policy_loss(policy.log_prob(batch.actions), batch.logprobs,
                                  batch.advantages, args.clip_coef)
        loss += args.vf_coef * script.value_loss(twin.value(batch.obs), batch.values, batch.returns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(parameters(agent), parameters(twin), atol=1e-5, rtol=1e-4)
