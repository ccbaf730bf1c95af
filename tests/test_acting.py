"""What is written is what acts: whatever a copier does to Agent.policy, the rollout does it."""
import sys
import types

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, SCRIPTS, Count, each_kind, register, setup

POLICY = {  # the last line of Agent.policy, by what the script's agent is
    "continuous": "        return Gaussian(self.actor(self.normalise(obs)), self.log_std)\n",
    "discrete": "        return Categorical(self.actor(self.normalise(obs)))\n",
    "either": "        outputs = self.actor(self.normalise(obs))\n"}
CRITIC = "        self.critic = self.network(obs_size, 1, gain=1.0)\n"
EXTRACTOR = ("        self.features = nn.Sequential(nn.Linear(obs_size, 64), nn.Tanh())\n"
             "        nn.init.normal_(self.features[0].weight)\n")


def copy_of(script, *changes):
    """The script's source with texts replaced, as a module of its own."""
    text = (ROOT / f"{script.__name__}.py").read_text()
    for old, new in changes:
        if len(NAMES) == 1 and old not in text:
            pytest.skip(f"the copy has another text here than: {old.strip()}")
        assert text.count(old) >= 1, f"not in the script: {old}"
        text = text.replace(old, new)
    module = types.ModuleType(f"copy_of_{script.__name__}")
    module.__file__ = script.__file__
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    return module


def with_outputs(script, expression):
    """The change that puts this expression of the normalised observations x for the actor's."""
    line = {"ppo_continuous": POLICY["continuous"],
            "ppo_discrete": POLICY["discrete"]}.get(script.__name__, POLICY["either"])
    return line, "        x = self.normalise(obs)\n" + line.replace(
        "self.actor(self.normalise(obs))", expression)


def certain(agent):
    """Make the policy so sure of itself that its action is its mode, and that the mode varies."""
    with torch.no_grad():
        for p in agent.actor.parameters():
            p.mul_(30).add_(torch.randn_like(p))
        if hasattr(agent, "log_std"):
            agent.log_std.fill_(-14.0)
        else:
            agent.actor[-1].weight.mul_(1e4)


def acts_as_written(module, kind, numpy, **changes):
    """The actions of a rollout are the modes of agent.policy; did NumPy compute them?"""
    env_id = register(Count, kind=kind, lengths=(3, 4))
    args, envs, agent, obs = setup(module, env_id=env_id, **({"num_steps": 20} | changes))
    agent.obs_stats.update(torch.randn(50, 2) * 3 + 1)
    certain(agent)
    act = module.actor_of(agent, obs)
    with torch.no_grad():
        for obs in 3 * np.random.default_rng(0).normal(size=(20, 2, 2)):
            expected = agent.policy(torch.from_numpy(obs)).mode.numpy()
            np.testing.assert_allclose(act(obs), expected, atol=1e-3, rtol=1e-3)
    assert ("twin" in act.__code__.co_freevars if hasattr(act, "__code__") else False) == numpy
    return agent


@pytest.mark.parametrize("expression, numpy", [
    ("self.actor(x)", True),  # as it is
    ("self.actor(x) / 2", True),  # a temperature, or half the mean
    ("self.actor(x) + 50 * (x[..., :1] > 0)", True),  # depends on the observation
    ("self.actor(x) * 0 + 1e4 * self.features(x)[..., :2]", True),  # a shared extractor, in NumPy
    ("F.leaky_relu(self.actor(x))", False),  # what only PyTorch has
    ("torch.where(x > 0, self.actor(x), -self.actor(x))", False),
    ("self.actor(x) / x.std(-1, keepdims=True)", False)],  # NumPy's has another definition
    ids=str)
@each_kind(SCRIPTS)
def test_a_change_of_the_policy_acts(script, kind, expression, numpy):
    """Computed by NumPy where that gives the same, else by PyTorch; never another policy."""
    module = copy_of(script, with_outputs(script, expression), (CRITIC, CRITIC + EXTRACTOR),
                     ("from torch import Tensor, nn\n",
                      "import torch.nn.functional as F\nfrom torch import Tensor, nn\n"))
    acts_as_written(module, kind, numpy)


@pytest.mark.parametrize("layer", ["nn.LayerNorm(64)", "nn.GELU()",
                                   "nn.Linear(64, 64, bias=False)"])
@each_kind(SCRIPTS)
def test_other_layers_act(script, kind, layer):
    """A layer that NumPy is not told about is computed by PyTorch."""
    old = "layers[1], activation(), layers[2])"
    module = copy_of(script, (old, f"layers[1], {layer}, layers[2])"))
    acts_as_written(module, kind, numpy=False)


@each_kind(SCRIPTS)
def test_relu_acts(script, kind):
    """--activation relu, too."""
    acts_as_written(script, kind, numpy=True, activation="relu")


@each_kind([s for s in SCRIPTS if s.__name__ != "ppo_discrete"])
def test_another_distribution_acts(script, kind):
    """A sample that is squashed by tanh, for tensors only, acts: PyTorch then does the acting."""
    if kind == "discrete":
        pytest.skip("it has no sample to squash")
    old = "        return (self.mode + self.log_std.exp() * torch.from_numpy(noise).to(self.mode))"
    module = copy_of(script, (old, old + ".tanh()"))  # the array's line is not changed
    env_id = register(Count, kind=kind)
    args, envs, agent, obs = setup(module, env_id=env_id, log_std_init=2.0)
    act = module.actor_of(agent, obs)
    assert max(np.abs(act(obs)).max() for _ in range(50)) <= 1


@each_kind(SCRIPTS)
def test_what_changes_between_rollouts_acts(script, kind):
    """A number of Python's that is halved after each rollout acts in the next one."""
    module = copy_of(script, with_outputs(script, "self.actor(x) * self.factor"),
                     (CRITIC, CRITIC + "        self.factor = 1.0\n"))
    args, envs, agent, obs = setup(module, env_id=register(Count, kind=kind))
    certain(agent)
    for factor in (1.0, -1.0, 0.5):
        agent.factor = factor
        with torch.no_grad():
            expected = agent.policy(torch.from_numpy(obs)).mode.numpy()
        np.testing.assert_allclose(module.actor_of(agent, obs)(obs), expected, atol=1e-3)


@each_kind(SCRIPTS)
def test_numpy_has_pytorch_s_distribution(script, kind):
    """The unchanged policy on arrays: the same distribution, to 1e-5."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind), clip_obs=2.0)
    agent.obs_stats.update(torch.randn(50, 2) * 3 + 1)
    with torch.no_grad():
        for p in agent.actor.parameters():
            p.normal_(std=0.3)
        raw = torch.randn(20, 2, dtype=torch.float64) * 10
        assert agent.normalise(raw).abs().max() == 2.0
        theirs, ours = agent.policy(raw), script.in_numpy(agent).policy(raw.numpy())
        for x, y in zip(theirs, ours):
            assert isinstance(y, np.ndarray)
            np.testing.assert_allclose(y, x.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offset, spread", [(1.7e9, 1.0), (0.0, 1e-6), (-3e5, 1e-3)])
@each_kind(SCRIPTS)
def test_normalisation_keeps_what_float32_would_lose(script, kind, offset, spread):
    """Two states that differ by one spread stay apart, behind a large offset, too."""
    args, envs, agent, _ = setup(script, env_id=register(Count, kind=kind))
    obs = torch.full((100, 2), offset, dtype=torch.float64)
    obs[::2] += spread
    agent.obs_stats.update(obs)
    in_numpy = torch.from_numpy(script.in_numpy(agent).normalise(obs.numpy()))
    for normal in (agent.normalise(obs), in_numpy):
        assert normal.dtype == torch.float32
        assert (normal[0] - normal[1]).min() > (0.009 if spread < 1e-4 else 1.9)
