"""variants.py: what each variant computes, that it trains, and the command line."""
import copy
import dataclasses
import json
import math
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    Count,
    OneStep,
    changeable,
    learn,
    make_optimizer,
    minibatch_gradient,
    register,
    rows,
    setup,
    tiny_args,
    trained,
)

sys.path.insert(0, str(ROOT / "benchmarks"))
import variants  # noqa: E402

COMPILES = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))),
                              reason="torch.compile needs a C++ compiler")
TASK = {"ppo_discrete": "CartPole-v1", "ppo_continuous": "Pendulum-v1"}


@pytest.fixture
def script(request, monkeypatch):
    """A copy of a script, ppo_continuous.py if none is named, that may be changed."""
    return changeable(getattr(request, "param", "ppo_continuous"), monkeypatch)


def with_each(*names):
    """Parametrise a test over copies of these scripts."""
    return pytest.mark.parametrize("script", names, indirect=True)


class Dot(gym.Env):
    """An image of 6 × 5 pixels with a dot in one of 3 channels, and the action should say which.
    One step; the dot can be anywhere."""

    def __init__(self, dtype=np.uint8, render_mode=None):
        self.brightest = 255 if dtype == np.uint8 else 1
        self.observation_space = gym.spaces.Box(0, self.brightest, (6, 5, 3), dtype)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        place = tuple(self.np_random.integers(self.observation_space.shape))
        self.image = np.zeros((6, 5, 3), self.observation_space.dtype)
        self.image[place] = self.brightest
        self.channel = place[2]
        return self.image, {}

    def step(self, action):
        return self.image, float(action == self.channel), True, False, {}


class TwoStates(gym.Env):
    """One step. Where the observation is 1 the reward is −a², where it is 0 every action gets 0."""

    def __init__(self, render_mode=None):
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.integers(2, size=1).astype(np.float32)
        return self.state, {}

    def step(self, action):
        return self.state, -float(self.state[0] * action[0] ** 2), True, False, {}


def distribution(policy) -> torch.distributions.Distribution:
    """PyTorch's of the same parameters."""
    if hasattr(policy, "logits"):
        return torch.distributions.Categorical(logits=policy.logits)
    normal = torch.distributions.Normal(policy.mode, policy.log_std.exp())
    return torch.distributions.Independent(normal, 1)


def one_rollout(script, **changes):
    """args, agent and a rollout on the script's task."""
    settings = {"env_id": TASK.get(script.__name__, "CartPole-v1"), "num_steps": 16}
    args, envs, agent, obs = setup(script, **(settings | changes))
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    return args, agent, rollout


@torch.no_grad()
def move(agent, std=0.1):
    """Another policy: noise on all parameters."""
    for parameter in agent.parameters():
        parameter.add_(std * torch.randn_like(parameter))


# --------------------------------------------------------------------------------------------------
# All of them
# --------------------------------------------------------------------------------------------------
CASES = [(name, variant.__name__) for variant, names in variants.FITS.items() for name in names]


@pytest.mark.parametrize("script, variant", CASES, indirect=["script"])
def test_variants_train(script, variant, tmp_path):
    """The first ratio is 1, and two iterations change the policy; its checkpoint restores."""
    variants.VARIANTS[variant](script)
    env_id = TASK.get(script.__name__, "Pendulum-v1")
    args = tiny_args(script, env_id=register(Dot) if variant == "cnn" else env_id, num_steps=64,
                     num_minibatches=4, total_timesteps=1600 if script.__name__ == "reinforce"
                     else 256, ent_coef=0.01, eval_episodes=1, run_dir=str(tmp_path))
    envs = script.make_envs(args)
    torch.manual_seed(args.seed)  # as train does, so it starts with the same weights
    agent = script.Agent(envs, args)
    before = {name: value.clone() for name, value in agent.actor.state_dict().items()}
    rollout, _ = script.collect_rollout(agent, envs, envs.reset(seed=0)[0], args)
    batch = script.make_batch(agent, rollout, args)
    torch.testing.assert_close(agent.policy(batch.obs).log_prob(batch.actions), batch.logprobs)
    result = script.train(args)
    assert any(not torch.equal(before[name], value)
               for name, value in result.actor.state_dict().items())
    (run_dir,) = tmp_path.iterdir()
    other = script.Agent(envs, args)
    args.resume = str(run_dir)
    script.restore(args, other, make_optimizer(script, other, args))
    obs = torch.randn(5, envs.single_observation_space.shape[0])
    assert torch.equal(other.policy(obs).mode, result.policy(obs).mode)
    for name, value in result.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("script, variant", [case for case in CASES if case[1] != "cnn"],
                         indirect=["script"])
def test_variants_act(script, variant):
    """What acts is the variant's policy, in NumPy: the same noise gives the same actions."""
    variants.VARIANTS[variant](script)
    args, _, agent, _ = setup(script, env_id=TASK.get(script.__name__, "Pendulum-v1"))
    obs = np.linspace(-1, 1, 12).reshape(4, 3)
    if script.__name__ == "ppo_discrete":
        obs = obs.reshape(3, 4)
    move(agent)
    act = script.actor_of(agent, obs)
    np.random.seed(0)
    expected = agent.policy(torch.from_numpy(obs)).sample()
    agent.policy = None  # only actions computed in PyTorch would need it
    np.random.seed(0)
    np.testing.assert_allclose(act(obs), expected.detach(), atol=1e-5)


def test_a_changed_line(script):
    """`edit` and `insert` change what runs, also twice; the text that tracebacks show follows."""
    ones = torch.ones(3)
    variants.edit(script, "value_loss", "0.5 * F.mse_loss(values, returns)",
                  "7 * F.mse_loss(values, returns)")
    assert script.value_loss(ones, ones, 0 * ones) == 7
    variants.insert(script, "value_loss", "assert values.shape", "values = 2 * values",
                    "values = values + 1")
    assert script.value_loss(ones, ones, 0 * ones) == 63
    with pytest.raises(AssertionError) as error:
        script.value_loss(ones, torch.ones(1), ones)
    assert "assert values.shape == old_values.shape" in str(error.traceback[-1].statement)


@pytest.mark.parametrize("change", [
    lambda script: variants.edit(script, "value_loss", "no such text", ""),
    lambda script: variants.edit(script, "value_loss", "returns", "targets"),
    lambda script: variants.insert(script, "value_loss", "no such text", "pass"),
    lambda script: variants.insert(script, "value_loss", "return 0.5", "pass")])
def test_a_line_that_is_not_there_once(script, change):
    """It is refused, and the function stays as it was."""
    before = script.value_loss
    with pytest.raises(LookupError, match="value_loss in ppo_continuous.py should have once: "):
        change(script)
    assert script.value_loss is before


# --------------------------------------------------------------------------------------------------
# Episodes, optimisers, distributions
# --------------------------------------------------------------------------------------------------
def test_time_limits_terminate(script):
    """δ = r − V where the time limit ended the episode; elsewhere nothing changes."""
    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    done = torch.tensor([[True], [False]])
    arguments = (ones, zeros, 5 * ones, torch.zeros(2, 1, dtype=torch.bool), done, 0.9, 0.95)
    assert script.compute_gae(*arguments).flatten().tolist() == pytest.approx([5.5, 5.5])
    variants.time_limits_terminate(script)
    assert script.compute_gae(*arguments).flatten().tolist() == pytest.approx([1.0, 5.5])


@pytest.mark.parametrize("script", ["a2c"], indirect=True)
def test_adam(script):
    """Two steps of 1 along the same gradient, then one of 0: momentum goes on, RMSprop stops."""
    args = script.Args(env_id="Pendulum-v1", num_envs=1, learning_rate=1.0)
    for goes_on in (False, True):
        optimizer = make_optimizer(script, script.Agent(script.make_envs(args), args), args)
        theta = optimizer.state[0]
        for gradient in (1.0, 1.0, 0.0):
            before = theta.clone()
            optimizer.once(lambda state, g: (script.rmsprop(state, g, optimizer.lr), None),
                           gradient * torch.ones_like(theta))
        moved = theta != before
        assert moved.all() if goes_on else not moved.any()
        variants.adam(script)


def test_annealed_std(script, tmp_path, monkeypatch):
    """From the first value to −2.5, linearly in the steps taken, whatever the gradient says."""
    variants.annealed_std(script)
    seen, collect = [], script.collect_rollout

    def look_and_collect(agent, *rest):
        seen.append(agent.log_std.tolist())
        return collect(agent, *rest)

    monkeypatch.setattr(script, "collect_rollout", look_and_collect)
    agent = script.train(script.Args(
        env_id="Pendulum-v1", total_timesteps=256, num_envs=2, num_steps=32, num_minibatches=2,
        log_std_init=-0.5, eval_episodes=0, run_dir=str(tmp_path), cuda=False))
    expected = [pytest.approx([x]) for x in (-0.5, -1, -1.5, -2, -2.5)]
    assert [*seen, agent.log_std.tolist()] == expected


@pytest.mark.parametrize("variant", ["squashed_gaussian", "beta"])
def test_bounded_distributions(script, variant):
    """Of one action: its density integrates to 1, its entropy is −∫ p log p, samples have its mean,
    and lie inside (−1, 1)."""
    variants.VARIANTS[variant](script)
    outputs = torch.tensor([0.4]) if variant == "squashed_gaussian" else torch.tensor([0.7, 2.0])
    policy = (script.Gaussian(outputs, torch.tensor([-0.3])) if variant == "squashed_gaussian"
              else variants.ScaledBeta(outputs))
    x = torch.linspace(-1, 1, 200_001)[1:-1, None]
    density, width = policy.log_prob(x).exp(), 2 / 200_000
    assert density.shape == (199_999,)
    assert (density.sum() * width).item() == pytest.approx(1, abs=1e-3)
    entropy = -(density * density.log()).nan_to_num().sum() * width
    assert policy.entropy().item() == pytest.approx(entropy.item(), abs=2e-3)
    torch.manual_seed(0)
    samples = policy._replace(**{policy._fields[0]: outputs.expand(100_000, -1)}).sample()
    assert samples.shape == (100_000, 1) and samples.abs().max() <= 1
    mean, error = (density * x[:, 0]).sum() * width, samples.std() / 100_000**0.5
    assert abs(samples.mean() - mean) < 4 * error
    if variant == "beta":
        assert x[density.argmax()].item() == pytest.approx(policy.mode.item(), abs=1e-3)
    else:
        assert policy.mode.item() == pytest.approx(math.tanh(0.4))


@pytest.mark.parametrize("variant", ["squashed_gaussian", "beta"])
def test_bounded_distributions_learn(script, variant, tmp_path):
    """One step per episode, the reward −(a − 0.5)²: from 0 the mode goes to 0.5."""
    variants.VARIANTS[variant](script)
    args = script.Args(env_id=register(OneStep, kind="continuous"), num_steps=32, num_minibatches=4,
                       total_timesteps=12_800, learning_rate=3e-3, ent_coef=1e-3, eval_episodes=0,
                       run_dir=str(tmp_path), cuda=False)
    mode = script.train(args).policy(torch.ones(1, 1)).mode.item()
    assert mode == pytest.approx(0.5, abs=0.1)


# --------------------------------------------------------------------------------------------------
# kl_penalty
# --------------------------------------------------------------------------------------------------
@with_each("ppo_discrete", "ppo_continuous")
def test_kl_is_pytorch_s(script):
    """In each state, KL(π_old ‖ π) and not KL(π ‖ π_old)."""
    torch.manual_seed(0)
    if script.__name__ == "ppo_discrete":
        old, new = (script.Categorical(torch.randn(5, 3)) for _ in range(2))
    else:
        old, new = (script.Gaussian(torch.randn(5, 3), torch.randn(5, 3)) for _ in range(2))
    expected = torch.distributions.kl_divergence(distribution(old), distribution(new))
    torch.testing.assert_close(variants.kl_divergence(old, new), expected)
    assert not torch.allclose(variants.kl_divergence(new, old), expected)


@with_each("ppo_discrete", "ppo_continuous")
def test_kl_penalty_is_in_the_gradient(script):
    """Of a step at another policy: that of −mean[ρÂ] + β mean KL(π_old ‖ π) + c_v value loss."""
    variants.kl_penalty(script)
    args, agent, rollout = one_rollout(script, max_grad_norm=0.0)
    batch = script.make_batch(agent, rollout, args)
    old = distribution(copy.deepcopy(agent).policy(batch.obs))
    move(agent)
    agent.beta.fill_(0.7)
    new = agent.policy(batch.obs)
    ratio = (new.log_prob(batch.actions) - batch.logprobs).exp()
    assert (ratio - 1).abs().max() > args.clip_coef, "clipping would change nothing"
    kl = torch.distributions.kl_divergence(old, distribution(new)).mean()
    loss = -(ratio * batch.advantages).mean() + 0.7 * kl
    loss = loss + args.vf_coef * 0.5 * (agent.value(batch.obs) - batch.returns).square().mean()
    expected = torch.autograd.grad(loss, list(agent.parameters()))
    gradient, _ = minibatch_gradient(script, agent, batch, slice(None), args)
    torch.testing.assert_close(gradient, torch.cat([x.flatten() for x in expected]))


@with_each("ppo_discrete", "ppo_continuous")
def test_the_old_policy_stays(script):
    """The steps of an update leave the batch's π_old as it was, log σ too; the KL is to it."""
    variants.kl_penalty(script)
    args, agent, rollout = one_rollout(script, learning_rate=0.01)
    batch, before = script.make_batch(agent, rollout, args), copy.deepcopy(agent)
    metrics = script.update(agent, make_optimizer(script, agent, args), batch, args)
    old = type(before.policy(batch.obs))(*batch.old_policy.unbind(-1))
    for ours, theirs in zip(old, before.policy(batch.obs)):
        assert torch.equal(ours, theirs.expand_as(ours))
    kl = torch.distributions.kl_divergence(distribution(old),
                                           distribution(agent.policy(batch.obs))).mean().item()
    assert metrics["kl"] == pytest.approx(kl, rel=1e-3) and kl > 1e-3


@pytest.mark.parametrize("kl, beta, expected", [
    (0.031, 1.0, 2.0), (0.029, 1.0, 1.0), (0.014, 1.0, 1.0), (0.013, 1.0, 0.5), (9.0, 0.5, 1.0),
    (9.0, 1000.0, 1000.0), (0.0, 1e-3, 1e-3)])
def test_beta_is_adapted(script, kl, beta, expected):
    """Doubled above 1.5 d_targ, halved below d_targ / 1.5, within its bounds."""
    script.update = lambda *_: {"kl": kl}
    variants.kl_penalty(script)
    args, _, agent, _ = setup(script, env_id="Pendulum-v1", d_targ=0.02)
    assert agent.beta == 1 and "beta" in agent.state_dict(), "it would not be saved"
    agent.beta.fill_(beta)
    script.update(agent, None, None, args)
    assert agent.beta.item() == pytest.approx(expected)


def test_kl_penalty_learns_cartpole(tmp_path):
    """By its command, in 49,152 steps: the last 100 episodes average above 300, the mode above 450.

    Seeds 1 to 5: 353 to 413, and 500. A random policy gets 22.
    """
    command = [sys.executable, str(ROOT / "benchmarks/variants.py"), "ppo_discrete", "kl_penalty",
               "--env-id", "CartPole-v1", "--total-timesteps", "49152", "--num-minibatches", "8",
               "--learning-rate", "0.0005", "--no-cuda", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.iterdir()
    log = rows(run_dir)
    assert float(log[-1]["return_100"]) > 300
    assert np.mean(json.loads((run_dir / "evaluation.json").read_text())["returns"]) > 450
    assert len({row["beta"] for row in log}) > 2


# --------------------------------------------------------------------------------------------------
# dual_clip
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (5.0, -2.0, 6.0, 0.0), (2.9, -2.0, 5.8, 2.0),  # only beyond c = 3 is it another loss
    (0.5, -2.0, 1.6, 0.0), (1.0, -2.0, 2.0, 2.0), (5.0, 2.0, -2.4, 0.0), (0.5, 2.0, -1.0, -2.0)])
@with_each("ppo_discrete", "ppo_continuous")
def test_dual_clip(script, ratio, advantage, loss, slope):
    """The loss and its slope in ρ, by hand, with ε = 0.2; PPO's loss for the first is 10."""
    ratio, advantage = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    arguments = ratio.log(), torch.zeros(1), advantage, 0.2
    before = script.policy_loss(*arguments).item()
    assert before == pytest.approx(10 if ratio.item() == 5 and advantage < 0 else loss)
    variants.dual_clip(script)
    found = script.policy_loss(*arguments)
    assert found.item() == pytest.approx(loss)
    assert torch.autograd.grad(found, ratio)[0].item() == pytest.approx(slope)


@with_each("ppo_discrete", "ppo_continuous")
def test_dual_clip_is_a_mean(script):
    """Of samples, each on its own side of c."""
    variants.dual_clip(script)
    ratio, advantages = torch.tensor([5.0, 1.0, 5.0]), torch.tensor([-2.0, 1.0, 2.0])
    loss = script.policy_loss(ratio.log(), torch.zeros(3), advantages, 0.2)
    assert loss.item() == pytest.approx((6 - 1 - 2.4) / 3)


# --------------------------------------------------------------------------------------------------
# shared_features
# --------------------------------------------------------------------------------------------------
@with_each("a2c", "ppo_discrete", "ppo_continuous")
def test_gradient_of_shared_features(script):
    """That of the policy loss plus c_v times that of the value loss; each last layer has its own
    alone. The two metrics are the norms of the two terms, before the step."""
    variants.shared_features(script)
    args, agent, rollout = one_rollout(script, vf_coef=0.3, max_grad_norm=0.0, update_epochs=1,
                                       num_minibatches=1)
    move(agent)
    batch, twin = script.make_batch(agent, rollout, args), copy.deepcopy(agent)
    optimizer = make_optimizer(script, agent, args)
    gradient, seen = optimizer.gradient, []
    optimizer.gradient = lambda *arguments: seen.append(gradient(*arguments)) or seen[-1]
    metrics = script.update(agent, optimizer, batch, args)
    sizes = [parameter.numel() for parameter in optimizer.named.values()]
    found = dict(zip(optimizer.named, seen[0][0].split(sizes)))

    surrogate = (twin.policy(batch.obs).log_prob(batch.actions) * batch.advantages).mean()
    error = 0.5 * (twin.value(batch.obs) - batch.returns).square().mean()
    norms = []
    for loss in (-surrogate, 0.3 * error):
        parts = torch.autograd.grad(loss, list(twin.parameters()), allow_unused=True,
                                    materialize_grads=True)
        parts = dict(zip([name for name, _ in twin.named_parameters()], parts))
        shared = [x.flatten() for name, x in parts.items() if name.startswith("features.")]
        norms.append(torch.cat(shared).norm().item())
        assert len(shared) == 4 and norms[-1] > 1e-4
        for name, x in parts.items():
            found[name] = found[name] - x.flatten()
    for name, rest in found.items():
        assert rest.abs().max() < 1e-6, name
    assert [metrics["policy_gradient"], metrics["value_gradient"]] == pytest.approx(norms, 1e-3)


@with_each("a2c", "ppo_discrete", "ppo_continuous")
def test_features_are_there_once(script):
    """One set of hidden layers for both, with two last layers, and no other parameters."""
    variants.shared_features(script)
    args, agent, _ = one_rollout(script)
    inputs, outputs = agent.features[0].in_features, agent.actor[-1].out_features
    hidden = 64 * (inputs + 1) + 64 * 65
    log_std = sum(p.numel() for name, p in agent.named_parameters() if name == "log_std")
    assert len(make_optimizer(script, agent, args).state[0]) == (
        hidden + 65 * outputs + 65 + log_std)
    obs = torch.randn(3, inputs)
    before = agent.policy(obs).mode.float(), agent.value(obs)
    assert agent.policy(obs).mode.shape[0] == 3 and agent.value(obs).shape == (3,)
    torch.nn.init.zeros_(agent.features[2].weight)
    logits_or_mean, values = agent.actor(agent.normalise(obs)), agent.value(obs)
    assert (logits_or_mean == logits_or_mean[0]).all() and (values == values[0]).all()
    assert not (before[1] == before[1][0]).all()


# --------------------------------------------------------------------------------------------------
# state_std
# --------------------------------------------------------------------------------------------------
GAUSSIAN = ("reinforce", "a2c", "ppo_continuous", "trpo")


@with_each(*GAUSSIAN)
def test_state_dependent_std(script):
    """σ(s) starts near --log-std-init, differs between states, and has gradients; log π, entropy
    and shapes are those of PyTorch's Gaussian with these parameters."""
    variants.state_std(script)
    args, _, agent, _ = setup(script, env_id="Pendulum-v1", log_std_init=-0.4)
    obs = torch.randn(6, 2, 3)
    assert (agent.policy(obs).log_std + 0.4).abs().max() < 0.05
    move(agent, std=0.5)
    policy, actions = agent.policy(obs), torch.randn(6, 2, 1)
    theirs = distribution(policy)
    assert policy.log_std.shape == (6, 2, 1) and policy.log_std.std() > 0.1
    torch.testing.assert_close(policy.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(policy.entropy(), theirs.entropy())
    (gradient,) = torch.autograd.grad(policy.log_std.sum(), agent.actor[0].weight)
    assert gradient.abs().max() > 1e-3
    assert not hasattr(agent, "log_std")


@with_each(*GAUSSIAN)
def test_state_std_is_bounded(script):
    variants.state_std(script)
    _, _, agent, _ = setup(script, env_id="Pendulum-v1")
    for bias, bound in ((99.0, 2.0), (-99.0, -5.0)):
        torch.nn.init.constant_(agent.actor[-1].bias, bias)
        assert (agent.policy(torch.randn(5, 3)).log_std == bound).all()
        assert (agent.policy(torch.randn(5, 3)).mode.abs() > 90).all()


def test_state_std_learns_where_to_be_exact(script, tmp_path):
    """In the state where only a = 0 is right, σ falls; in the other it need not. (After 12,800
    steps, seeds 1 to 5, log σ is at its lower bound, −5, and 1.6 to 2.)"""
    variants.state_std(script)
    _, agent, _ = trained(script, tmp_path, env_id=register(TwoStates), num_envs=8, num_steps=32,
                          num_minibatches=4, update_epochs=10, total_timesteps=7680,
                          learning_rate=3e-3)
    anything, exact = agent.policy(torch.tensor([[0.0], [1.0]])).log_std.flatten().tolist()
    assert exact < -2 and anything > -0.75


@with_each("reinforce", "a2c", "trpo")
def test_state_std_needs_real_actions(script):
    variants.state_std(script)
    with pytest.raises(script.UserError, match="state_std needs real-valued actions, not Discrete"):
        setup(script, env_id="CartPole-v1")


# --------------------------------------------------------------------------------------------------
# falling_entropy
# --------------------------------------------------------------------------------------------------
FALLING = ("reinforce", "a2c", "ppo_discrete", "ppo_continuous")


@with_each(*FALLING)
def test_the_bonus_falls(script, tmp_path):
    """From --ent-coef in the first iteration, linearly in the steps taken."""
    variants.falling_entropy(script)
    env_id = register(Count, kind="continuous" if "cont" in script.__name__ else "discrete",
                      lengths=(4,))
    _, _, run_dir = trained(script, tmp_path, env_id=env_id, ent_coef=0.8, total_timesteps=64,
                            num_envs=2, num_steps=8, episodes_per_update=4)
    log = rows(run_dir)
    steps = [0, *(int(row["global_step"]) for row in log[:-1])]
    assert len(log) == 4 and steps[1:] == [16, 32, 48]
    assert [float(row["ent_coef"]) for row in log] == pytest.approx(
        [0.8 * (1 - step / 64) for step in steps])


def two_updates(script, args, agent, rollout, weights):
    """The parameters after two updates of a copy, with these weights of the bonus."""
    twin = copy.deepcopy(agent)
    optimizer = make_optimizer(script, twin, args)
    optimizer.ent_coef = torch.zeros_like(optimizer.lr)
    torch.manual_seed(3)
    for weight in weights:
        optimizer.ent_coef.fill_(weight)
        learn(script, twin, optimizer, rollout, args)
    return torch.cat([parameter.detach().flatten() for parameter in twin.parameters()])


@with_each(*FALLING)
def test_the_weight_is_the_tensor_s(script):
    """Held at c_e, the tensor gives what --ent-coef c_e gives in the script itself."""
    changes = {"episodes_per_update": 2} if script.__name__ == "reinforce" else {}
    args, agent, rollout = one_rollout(script, ent_coef=0.5, **changes)
    move(agent, std=0.3)
    expected = two_updates(script, args, agent, rollout, (0.5, 0.5))
    variants.falling_entropy(script)
    args = dataclasses.replace(args, ent_coef=99.0)
    torch.testing.assert_close(two_updates(script, args, agent, rollout, (0.5, 0.5)), expected)
    without = two_updates(script, args, agent, rollout, (0.0, 0.0))
    assert (without - expected).abs().max() > 1e-5


@COMPILES
@with_each("ppo_discrete")
def test_a_falling_bonus_compiled(script, capsys):
    """--compile has the weight of each update, not the first one's: as eager, to 1e-5. (Slow.)"""
    variants.falling_entropy(script)
    args, agent, rollout = one_rollout(script, ent_coef=0.5, learning_rate=1e-3)
    move(agent, std=0.3)
    falling, constant = (two_updates(script, args, agent, rollout, weights)
                         for weights in ((0.8, 0.1), (0.8, 0.8)))
    assert (falling - constant).abs().max() > 1e-4
    args.compile = True
    compiled = two_updates(script, args, agent, rollout, (0.8, 0.1))
    out = capsys.readouterr().out
    assert "compiling" in out and "failed" not in out, out
    torch.testing.assert_close(compiled, falling, atol=1e-5, rtol=0)


def test_a_bonus_of_nothing(script):
    variants.falling_entropy(script)
    with pytest.raises(script.UserError, match="falling_entropy: needs --ent-coef"):
        script.check_args(tiny_args(script, env_id="Pendulum-v1"))
    script.check_args(tiny_args(script, env_id="Pendulum-v1", ent_coef=0.1))


# --------------------------------------------------------------------------------------------------
# cnn
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32], ids=lambda t: t.__name__)
@with_each("ppo_discrete")
def test_the_network_sees_the_image(script, dtype):
    """The first convolution gets (n, C, H, W), with each pixel where it was, divided by the
    brightest; the outputs have the leading axes of the observations."""
    variants.cnn(script)
    args, envs, agent, obs = setup(script, env_id=register(Dot, dtype=dtype))
    seen = []
    for network in agent.actor, agent.critic:
        network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = np.random.default_rng(0).integers(0, agent.largest + 1, (4, 2, 6, 5, 3))
    flat = torch.from_numpy(images.reshape(4, 2, -1).astype(float))
    assert agent.policy(flat).logits.shape == (4, 2, 3) and agent.value(flat).shape == (4, 2)
    assert agent.policy(flat[0, 0]).logits.shape == (3,)
    expected = torch.from_numpy(images / agent.largest).float()
    for found in seen[:2]:
        assert found.shape == (8, 3, 6, 5) and found.max() == 1
        for n, c, h, w in np.ndindex(found.shape):
            assert found[n, c, h, w] == expected[n // 2, n % 2, h, w, c]
    image = envs.envs[0].unwrapped.image
    agent.policy(torch.from_numpy(obs[:1]))
    assert torch.equal(seen[-1][0], torch.from_numpy(image / agent.largest).float().movedim(-1, 0))


@with_each("ppo_discrete")
def test_the_image_acts(script):
    """What acts is the policy: the same noise gives the same actions."""
    variants.cnn(script)
    _, _, agent, obs = setup(script, env_id=register(Dot), num_envs=5)
    move(agent, std=0.5)
    act = script.actor_of(agent, obs)
    np.random.seed(0)
    expected = agent.policy(torch.from_numpy(obs)).sample()
    np.random.seed(0)
    assert np.array_equal(act(obs), expected)


@with_each("ppo_discrete")
def test_cnn_learns_from_images(script, tmp_path):
    """Which of three channels has the dot, wherever it is: a guess gets 1/3. (Seeds 1 to 5: 1.)"""
    variants.cnn(script)
    args, agent, run_dir = trained(script, tmp_path, env_id=register(Dot), num_envs=8,
                                   num_steps=64, num_minibatches=8, update_epochs=4,
                                   total_timesteps=8192, learning_rate=3e-3)
    assert np.mean(script.evaluate(agent, args, 100)) > 0.9


@with_each("ppo_discrete")
def test_cnn_needs_images(script):
    variants.cnn(script)
    with pytest.raises(script.UserError, match="CartPole-v1: cnn needs images with bounds"):
        setup(script, env_id="CartPole-v1")
    with pytest.raises(script.UserError, match="cnn needs images with bounds"):
        setup(script, env_id="FrozenLake-v1")


# --------------------------------------------------------------------------------------------------
# rnd
# --------------------------------------------------------------------------------------------------
@with_each("ppo_discrete", "ppo_continuous")
def test_novelty_wears_off(script):
    """After 20 updates on the same batch the error on its states is less than 1/50 of what it was,
    and far from them more than 1/10; the target is as it was, and not in θ.

    Seeds 1 to 3: 1/1045 to 1/321, and 1/4 to 1/1.2."""
    variants.rnd(script)
    args, agent, rollout = one_rollout(script, learning_rate=3e-3)
    batch, optimizer = script.make_batch(agent, rollout, args), make_optimizer(script, agent, args)
    others = batch.next_obs + 10

    @torch.no_grad()
    def error(obs):
        return agent.distillation.error(agent.normalise(obs)).mean()

    seen, unseen = error(batch.next_obs), error(others)
    target = copy.deepcopy(agent.distillation.target.state_dict())
    for _ in range(20):
        metrics = script.update(agent, optimizer, batch, args)
    assert error(batch.next_obs) < seen / 50 and error(others) > unseen / 10
    assert metrics["prediction_error"] == pytest.approx(error(batch.next_obs).item())
    now = agent.distillation.target.state_dict()
    assert all(torch.equal(x, now[name]) for name, x in target.items())
    assert {name.split(".")[-3] for name in optimizer.named if "distillation" in name} == {
        "predictor"}


@with_each("ppo_discrete", "ppo_continuous")
def test_intrinsic_rewards(script, monkeypatch):
    """Errors over the std of their discounted sums so far, which go on from rollout to rollout."""
    variants.rnd(script)
    _, agent, _ = one_rollout(script)
    errors, sums = torch.rand(10, 2), []
    monkeypatch.setattr(agent.distillation, "error", lambda obs: obs)
    for t in range(10):
        sums.append(sum(0.8**(t - k) * errors[k] for k in range(t + 1)))
    for part in (slice(0, 6), slice(6, 10)):
        found = agent.distillation.rewards(errors[part], 0.8)
        std = np.std(torch.stack(sums[:part.stop]).numpy())
        torch.testing.assert_close(found, errors[part] / std)


@with_each("ppo_discrete", "ppo_continuous")
def test_novelty_is_a_reward_of_the_learner_only(script):
    """With γ = 0 a return is one reward: the scaled one of the environment, plus c_i · i of the
    successor. The successors in the batch include the last observations of episodes."""
    kind = "continuous" if "continuous" in script.__name__ else "discrete"
    env_id = register(Count, kind=kind)
    plain_args, plain_agent, _ = one_rollout(script, env_id=env_id, gamma=0.0)
    variants.rnd(script)
    args, agent, rollout = one_rollout(script, env_id=env_id, gamma=0.0, rnd_coef=0.3)
    batch = script.make_batch(agent, rollout, args)
    assert torch.equal(batch.next_obs, rollout.next_obs.flatten(0, 1))
    assert (batch.next_obs[:, 1] == 3).any(), "the last of an episode is never a first one's"
    errors = agent.distillation.error(agent.normalise(batch.next_obs)).detach()
    scaled = plain_agent.scale_rewards(rollout.rewards, rollout.done).flatten()
    torch.testing.assert_close(batch.returns, scaled + 0.3 * errors / errors.std(correction=0))


@with_each("ppo_discrete", "ppo_continuous")
def test_the_predictor_learns_the_successors(script):
    """Its gradient is that of its mean error on s', which alone includes the last observations."""
    variants.rnd(script)
    args, agent, rollout = one_rollout(script, max_grad_norm=0.0)
    batch = script.make_batch(agent, rollout, args)
    gradient, _ = minibatch_gradient(script, agent, batch, slice(None), args)
    named = {name: parameter for name, parameter in agent.named_parameters()
             if parameter.requires_grad}
    found = dict(zip(named, gradient.split([x.numel() for x in named.values()])))
    error = agent.distillation.error(agent.normalise(batch.next_obs)).mean()
    for name, expected in zip(named, torch.autograd.grad(error, list(named.values()),
                                                         allow_unused=True)):
        assert (expected is not None) == name.startswith("distillation.predictor")
        if expected is not None:
            torch.testing.assert_close(found[name], expected.flatten())


@with_each("ppo_discrete", "ppo_continuous")
def test_logged_returns_are_the_environment_s(script, tmp_path):
    """Episodes of rewards 1, 2, 3 return 6."""
    variants.rnd(script)
    kind = "continuous" if "continuous" in script.__name__ else "discrete"
    _, _, run_dir = trained(script, tmp_path, env_id=register(Count, kind=kind), rnd_coef=5.0)
    assert {float(row["episodic_return"]) for row in rows(run_dir)} == {6.0}


# --------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments, message", [
    ([], "script '': must be one of reinforce, a2c, ppo_discrete, ppo_continuous, trpo"),
    (["dqn", "beta"], "script 'dqn': must be one of reinforce,"),
    (["a2c"], "variant '': must be one of time_limits_terminate,"),
    (["a2c", "gamma"], "variant 'gamma': must be one of time_limits_terminate,"),
    (["a2c", "beta", "--seed", "2"], "beta does not fit a2c: for ppo_continuous"),
    (["trpo.py", "rnd"], "rnd does not fit trpo: for ppo_discrete, ppo_continuous")])
def test_mistakes(arguments, message, monkeypatch, capsys):
    """One line, exit code 2."""
    monkeypatch.setattr(sys, "argv", ["variants.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        variants.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert err.startswith(f"variants.py: {message}") and err.count("\n") == 1


def test_a_script_that_has_changed(tmp_path):
    """Where a line that a variant changes is not there any more, one line says which."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/variants.py", tmp_path / "benchmarks")
    text = (ROOT / "ppo_discrete.py").read_text("utf-8")
    assert text.count("returns = minibatch") == 1
    (tmp_path / "ppo_discrete.py").write_text(
        text.replace("returns = minibatch", "targets = minibatch"), "utf-8")
    done = subprocess.run([sys.executable, str(tmp_path / "benchmarks/variants.py"), "ppo_discrete",
                           "rnd"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == ("variants.py: minibatch_step in ppo_discrete.py should have once: "
                           "returns = minibatch\n")
