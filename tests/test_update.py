"""Section 6: minibatches, the optimiser, the end of an update, and its metrics."""
import copy
import dataclasses
import functools
import shutil
import sys
import types

import pytest
import torch
from conftest import (
    ACTOR_CRITIC,
    NAMES,
    PPO,
    ROOT,
    SCRIPTS,
    Count,
    each,
    each_kind,
    kinds,
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
    assert optimizer.state[-2] == pytest.approx(1 - 0.999, rel=1e-4)  # c₂ after one step
    assert metrics["approx_kl"] > 1e-7
    assert learn(script, agent, optimizer, rollout, args)["gradient_steps"] == 1  # begins anew


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
    state = [theta.detach().clone(), *torch.zeros(2, 50), *torch.zeros(2)]
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


@each_kind([s for s in SCRIPTS if s.__name__ in ("reinforce", "ppo_discrete", "ppo_continuous")])
def test_a_step_changes_nothing_in_place(script, kind):
    """The step is a function: neither the state nor the minibatch is another after it. (Those of
    a2c.py and trpo.py: test_a2c.py, test_trpo.py.)"""
    args, agent, optimizer, rollout = prepared(script, kind, max_grad_norm=0.1)
    if script in PPO:
        step = functools.partial(script.minibatch_step, optimizer, args)
    else:
        step = functools.partial(script.gradient_step, optimizer, args, args.episodes_per_update)
    batch = script.make_batch(agent, rollout, args)
    for x in optimizer.state[1:]:  # a change in place of 0 may be none
        x.fill_(0.5)
    before = [x.clone() for x in (*optimizer.state, optimizer.lr, *batch)]
    after, _ = step(optimizer.state, batch)
    assert all(map(torch.equal, before, (*optimizer.state, optimizer.lr, *batch)))
    assert not torch.equal(after[0], before[0])


@each_kind(SCRIPTS)
def test_frozen_parameters_stay(script, kind):
    """What does not require a gradient is not part of θ and stays, bit for bit; the rest moves."""
    args, agent, _, rollout = prepared(script, kind, baseline="value")
    learnt = agent.critic if script.__name__ == "trpo" else agent  # what is in θ if not frozen
    agent.critic[0].requires_grad_(False)
    if script.__name__ != "trpo":
        agent.actor[0].requires_grad_(False)
    before, optimizer = copy.deepcopy(agent.state_dict()), make_optimizer(script, agent, args)
    assert len(optimizer.state[0]) == sum(p.numel() for p in learnt.parameters() if p.requires_grad)
    learn(script, agent, optimizer, rollout, args)
    for name, p in agent.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


@each_kind(PPO)
def test_the_ratio_is_to_the_policy_that_acted(script, kind, monkeypatch):
    """At every step of an update, the second epoch's too, log π_old is the batch's: it is computed
    once, before the first step."""
    args, agent, optimizer, rollout = prepared(script, kind, learning_rate=0.01)
    batch, seen, loss = script.make_batch(agent, rollout, args), [], script.policy_loss
    monkeypatch.setattr(script, "policy_loss", lambda logprobs, old_logprobs, *rest: (
        seen.append(old_logprobs) or loss(logprobs, old_logprobs, *rest)))
    script.update(agent, optimizer, batch, args)
    steps = args.update_epochs * args.num_minibatches
    for epoch in range(args.update_epochs):
        first = epoch * args.num_minibatches
        old = torch.cat(seen[first:first + args.num_minibatches])
        assert torch.equal(old.sort().values, batch.logprobs.sort().values), f"epoch {epoch + 1}"
    assert steps == 8 and len(seen) >= steps


# --------------------------------------------------------------------------------------------------
# --compile
# --------------------------------------------------------------------------------------------------
def all_on(script):
    """args, agent and a rollout with every setting on, chosen so that each has an effect."""
    kl = {"ppo_discrete": {"target_kl": 3e-4}, "ppo_continuous": {"target_kl": 4e-3}}
    args, agent, _, rollout = prepared(
        script, kinds(script)[0], ent_coef=0.5, clip_vloss=True, max_grad_norm=0.5, clip_coef=0.02,
        learning_rate=3e-4, norm_reward=False, update_epochs=4, **kl.get(script.__name__, {}))
    with torch.no_grad():  # at the maximum of the entropy its bonus would do nothing
        agent.actor[-1].weight.normal_(std=0.05)
    return args, agent, rollout


def two_updates(script, args, agent, rollout, **changes):
    """The parameters after two updates of a copy, the second with half the learning rate, and the
    metrics of each."""
    args, twin = dataclasses.replace(args, **changes), copy.deepcopy(agent)
    optimizer = make_optimizer(script, twin, args)
    torch.manual_seed(3)
    metrics = [learn(script, twin, optimizer, rollout, args)]
    optimizer.lr.mul_(0.5)
    metrics.append(learn(script, twin, optimizer, rollout, args))
    return parameters(twin), metrics


COMPILING = [s for s in SCRIPTS if s.__name__ != "reinforce"]


@each(COMPILING)
def test_settings_that_are_compiled_have_an_effect(script):
    """Each changes the result by more than compiled and eager may differ, and target_kl ends the
    first update within an epoch: else the next test would not see that one is ignored."""
    args, agent, rollout = all_on(script)
    theta, metrics = two_updates(script, args, agent, rollout)
    off = {"ent_coef": 0.0, "clip_vloss": False, "max_grad_norm": 0.0}
    if script in PPO:
        off["target_kl"] = None
        assert 4 < metrics[0]["gradient_steps"] < 8
    for name, value in off.items():
        if hasattr(args, name):
            without, _ = two_updates(script, args, agent, rollout, **{name: value})
            assert (without - theta).abs().max() > 1e-4, name


@COMPILES
@each(COMPILING)
def test_compiled_equals_eager(script, capsys):
    """--compile with every setting on: the same parameters and metrics after two updates, to 1e-5,
    and as many gradient steps. Compiled once. (Slow.)"""
    from torch._dynamo.utils import counters
    args, agent, rollout = all_on(script)
    eager, eager_metrics = two_updates(script, args, agent, rollout)
    counters.clear()
    compiled, compiled_metrics = two_updates(script, args, agent, rollout, compile=True)
    out = capsys.readouterr().out
    assert "compiling" in out and "failed" not in out, out
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=0)
    for ours, theirs in zip(compiled_metrics, eager_metrics):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert ours.get("gradient_steps") == theirs.get("gradient_steps")


def raises(*_, **__):
    raise RuntimeError("no\n  such compiler")


WAYS_TO_FAIL = {
    "no scan": lambda patch: patch.setitem(sys.modules, "torch._higher_order_ops",
                                           types.ModuleType("a_module_without_it")),
    "compile raises": lambda patch: patch.setattr(torch, "compile", raises),
    "first call raises": lambda patch: patch.setattr(torch, "compile", lambda *_, **__: raises)}


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
@each(COMPILING)
def test_compile_that_fails(script, way, monkeypatch, capsys):
    """One line says so, once in a run, and the numbers are those without --compile."""
    args, agent, rollout = all_on(script)
    eager, eager_metrics = two_updates(script, args, agent, rollout)
    WAYS_TO_FAIL[way](monkeypatch)
    fallen_back, metrics = two_updates(script, args, agent, rollout, compile=True)
    assert torch.equal(fallen_back, eager) and metrics == eager_metrics
    announced, failed = capsys.readouterr().out.splitlines()
    assert "compiling" in announced
    assert "it failed" in failed and "run goes on without it: " in failed
    assert ("import name 'scan'" if way == "no scan" else "no such compiler") in failed


@each(SCRIPTS)
def test_a_step_that_changes(script, capsys):
    """Without --compile each call takes its own step, so a number bound to it may change; so it is
    if compiled code fails in a later call, as where it meets a number that has changed."""
    args, _, agent, _ = setup(script)
    optimizer = make_optimizer(script, agent, args)

    def add(amount, state, minibatch):
        theta, *rest = state
        return [theta + amount, *rest], [theta.sum()]

    start = optimizer.state[0].clone()
    for amount in (1.0, 2.0):
        optimizer.run(functools.partial(add, amount), [torch.zeros(3, 1)])
    torch.testing.assert_close(optimizer.state[0], start + 3 * (1 + 2))
    optimizer.compile, optimizer.fast = True, raises  # as if an earlier call had compiled it
    for amount in (3.0, 4.0):
        optimizer.run(functools.partial(add, amount), [torch.zeros(3, 1)])
    torch.testing.assert_close(optimizer.state[0], start + 3 * (1 + 2 + 3 + 4))
    assert capsys.readouterr().out.count("--compile: it failed (if not at once") == 1


@each(SCRIPTS)
def test_an_optimiser_that_returns_too_little(script):
    """The message names what to look at: as if adam ended with `return [theta - lr * gradient]`."""
    args, _, agent, _ = setup(script)
    optimizer = make_optimizer(script, agent, args)
    with pytest.raises(ValueError, match="1 parts for a state of .: .*vectors. and .numbers"):
        optimizer.run(lambda state, minibatch: (state[:1], [state[0].sum()]), [torch.zeros(3, 1)])


# --------------------------------------------------------------------------------------------------
# Another optimiser
# --------------------------------------------------------------------------------------------------
LAST_LINE = {
    "adam": "    return [theta - lr * (m / c1) / ((v / c2).sqrt() + 1e-5), m, v, c1, c2]\n",
    "rmsprop": "    return [theta - lr * gradient / ((v / c).sqrt() + 1e-5), v, c]\n"}
SGD = {"adam": "    return [theta - lr * gradient, m, v, c1, c2]\n",
       "rmsprop": "    return [theta - lr * gradient, v, c]\n"}
ADAMW = {
    "adam": "    return [theta - lr * (m / c1 / ((v / c2).sqrt() + 1e-5) + 0.5 * theta),"
            " m, v, c1, c2]\n",
    "rmsprop": "    return [theta - lr * (gradient / ((v / c).sqrt() + 1e-5) + 0.5 * theta),"
               " v, c]\n"}


def with_last_line(script, lines, monkeypatch):
    """The script as a module whose adam (a2c.py: rmsprop) ends in another line."""
    function = "adam" if hasattr(script, "adam") else "rmsprop"
    text = (ROOT / f"{script.__name__}.py").read_text()
    if len(NAMES) == 1 and LAST_LINE[function] not in text:
        pytest.skip(f"the copy's {function} ends otherwise")
    assert text.count(LAST_LINE[function]) == 1
    module = types.ModuleType(script.__name__)
    module.__file__ = str(ROOT / f"{script.__name__}.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclass looks
    text = text.replace(LAST_LINE[function], lines[function])
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    return module


def loss_of(script, agent, batch, args):
    """What one step of the update goes down, without bonus; trpo.py: that of the critic."""
    values, logprobs = agent.value(batch.obs), agent.policy(batch.obs).log_prob(batch.actions)
    v_loss = 0.5 * (values - batch.returns).square().mean()
    if script.__name__ == "trpo":
        return v_loss
    if script.__name__ == "reinforce":
        return (script.policy_loss(logprobs, batch.advantages, args.episodes_per_update)
                + args.vf_coef * v_loss)
    if script.__name__ == "a2c":
        return script.policy_loss(logprobs, batch.advantages) + args.vf_coef * v_loss
    return script.policy_loss(logprobs, batch.logprobs, batch.advantages,
                              args.clip_coef) + args.vf_coef * v_loss


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("script, compile_it", [
    *((s, False) for s in SCRIPTS),
    *(pytest.param(s, True, marks=COMPILES) for s in SCRIPTS if s.__name__ == "ppo_continuous")],
    ids=lambda x: getattr(x, "__name__", "compiled" if x else "eager"))
def test_the_optimiser_is_one_line(script, name, compile_it, monkeypatch, capsys):
    """With the last line of adam or rmsprop replaced, four updates of one step each are four steps
    of torch.optim's SGD or AdamW (for rmsprop: with β₁ = 0, β₂ = 0.99)."""
    module = with_last_line(script, SGD if name == "sgd" else ADAMW, monkeypatch)
    rate = 0.1 if name == "sgd" else 1e-3
    args, agent, _, rollout = prepared(
        module, kinds(module)[0], learning_rate=rate, num_minibatches=1, update_epochs=1,
        critic_epochs=1, ent_coef=0.0, max_grad_norm=0.0, baseline="value", compile=compile_it)
    twin, batch = copy.deepcopy(agent), module.make_batch(copy.deepcopy(agent), rollout, args)
    update = module.critic_update if script.__name__ == "trpo" else module.update
    optimizer = make_optimizer(module, agent, args)
    betas = (0.0, 0.99) if script.__name__ == "a2c" else (0.9, 0.999)
    theirs = (torch.optim.SGD(twin.parameters(), lr=rate) if name == "sgd" else
              torch.optim.AdamW(twin.parameters(), lr=rate, eps=1e-5, betas=betas,
                                weight_decay=0.5))
    for _ in range(4):
        update(agent, optimizer, batch, args)
        theirs.zero_grad()
        loss_of(module, twin, batch, args).backward()
        theirs.step()
    out = capsys.readouterr().out
    assert ("compiling" in out) == compile_it and "failed" not in out, out
    torch.testing.assert_close(parameters(agent), parameters(twin), atol=1e-6, rtol=1e-5)
