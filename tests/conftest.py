"""The scripts under test, tiny environments with known answers, and a few helpers."""
import csv
import dataclasses
import importlib.util
import inspect
import itertools
import re
import signal
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from marker import IGNORED, LADDER, NAMES, ROOT  # noqa: F401  (test files take LADDER from here)

torch.set_num_threads(1)  # as start() does: tiny operations lose with more
collect_ignore = IGNORED
sys.path.insert(0, str(ROOT))
SCRIPTS = [importlib.import_module(name) for name in NAMES]
ACTOR_CRITIC = [s for s in SCRIPTS if hasattr(s, "compute_gae")]
PPO = [s for s in SCRIPTS if s.__name__.startswith("ppo_")]


def kinds(script) -> list[str]:
    """The action spaces that a script takes."""
    return {"ppo_discrete": ["discrete"], "ppo_continuous": ["continuous"]}.get(
        script.__name__, ["discrete", "continuous"])


def each(scripts):
    """Parametrise a test over scripts (argument `script`)."""
    return pytest.mark.parametrize("script", scripts, ids=lambda s: s.__name__)


def each_kind(scripts):
    """Parametrise a test over scripts and the action spaces they take (`script`, `kind`)."""
    cases = [(s, kind) for s in scripts for kind in kinds(s)]
    return pytest.mark.parametrize("script, kind", cases,
                                   ids=[f"{s.__name__}-{kind}" for s, kind in cases])


# --------------------------------------------------------------------------------------------------
# Environments
# --------------------------------------------------------------------------------------------------
class Count(gym.Env):
    """Observes [episode, step in it]; the reward is the step's number: every transition is known.

    The i-th one built has episodes of lengths[i] steps. `built` lists all since the test began.
    """

    built: list["Count"] = []

    def __init__(self, kind="discrete", lengths=(3,), ends="terminated", reuse=False,
                 dtype=np.float32, low=-1.0, high=1.0, render_mode=None):
        self.index, self.ends, self.reuse, self.dtype = len(self.built), ends, reuse, dtype
        self.length = lengths[self.index % len(lengths)]
        self.built.append(self)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype)
        self.action_space = gym.spaces.Discrete(2) if kind == "discrete" else gym.spaces.Box(
            np.array([low, low], np.float32), np.array([high, high + 1], np.float32))
        self.buffer, self.episode, self.actions, self.seeds = np.zeros(2, dtype), -1, [], []

    def observe(self):
        self.buffer[:] = self.episode, self.time
        return self.buffer if self.reuse else self.buffer.copy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.time = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.time += 1
        end = self.time == self.length
        return (self.observe(), float(self.time), end and self.ends in ("terminated", "both"),
                end and self.ends in ("truncated", "both"), {})


class OneStep(gym.Env):
    """One observation, one step. Discrete: arm 2 of 4 is best. Continuous: the target is 0.5."""

    def __init__(self, kind="discrete", render_mode=None):
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = (gym.spaces.Discrete(4) if kind == "discrete"
                             else gym.spaces.Box(-1, 1, (1,), np.float32))
        self.kind = kind

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        reward = ([0.0, 0.2, 1.0, 0.5][action] if self.kind == "discrete"
                  else -float(action[0] - 0.5) ** 2)
        return np.ones(1, np.float32), reward, True, False, {}


class Constant(gym.Env):
    """Reward 1 for ever; a time limit of 5 cuts it into episodes. V = 1 / (1 − γ)."""

    limit = 5

    def __init__(self, kind="discrete", render_mode=None):
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = (gym.spaces.Discrete(2) if kind == "discrete"
                             else gym.spaces.Box(-1, 1, (1,), np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.ones(1, np.float32), 1.0, False, self.time == self.limit, {}


class Broken(Constant):
    """From its k-th step on (counted over all episodes) `what` (reward or obs) is NaN."""

    def __init__(self, kind="discrete", k=20, what="reward", render_mode=None):
        super().__init__(kind)
        self.k, self.what, self.steps = k, what, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps >= self.k and self.what == "reward":
            reward = float("nan")
        if self.steps >= self.k and self.what == "obs":
            obs = obs * np.nan
        return obs, reward, terminated, truncated, info


class Spaces(gym.Env):
    """Never stepped: only its spaces matter."""

    def __init__(self, obs=None, action=None, render_mode=None):
        self.observation_space = obs or gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = action or gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


numbers = itertools.count()


def register(cls, **kwargs) -> str:
    """Register `cls` with these constructor arguments; returns its new environment id."""
    env_id = f"tests/{cls.__name__}{next(numbers)}-v0"
    gym.register(env_id, cls, kwargs=kwargs, disable_env_checker=True)
    return env_id


# --------------------------------------------------------------------------------------------------
# Helpers
# --------------------------------------------------------------------------------------------------
def tiny_args(script, **changes):
    """Args of a run of a few dozen steps on the CPU; fields that a script lacks are left out."""
    small = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2,
             "total_timesteps": 64, "episodes_per_update": 4, "critic_epochs": 2, "cuda": False,
             "eval_episodes": 0}
    fields = {f.name for f in dataclasses.fields(script.Args)}
    return script.Args(**{k: v for k, v in (small | changes).items() if k in fields})


def setup(script, **changes):
    """args, envs, agent and the first observation."""
    args = tiny_args(script, **changes)
    torch.manual_seed(args.seed)
    envs = script.make_envs(args)
    agent = script.Agent(envs, args)
    obs, _ = envs.reset(seed=(args.seed, 0))
    return args, envs, agent, obs


def make_optimizer(script, agent, args):
    """The optimiser that train() makes, at the learning rate of a run's first iteration."""
    sizes, = re.findall(r"Optimizer\(agent, args, (.+)\)", inspect.getsource(script.train))
    optimizer = script.Optimizer(agent, args, **eval(f"dict({sizes})"))
    optimizer.lr.fill_(args.learning_rate)
    return optimizer


def learn(script, agent, optimizer, rollout, args):
    """What train() does with a rollout; returns update's metrics."""
    batch = script.make_batch(agent, rollout, args)
    metrics = script.update(agent, optimizer, batch, args)
    agent.obs_stats.update(batch.obs)
    return metrics


def minibatch_gradient(script, agent, batch, idx, args):
    """The gradient that minibatch_step steps along, and the norm it returns; nothing moves.

    Seen by a step function in the place of adam."""
    optimizer, handed = make_optimizer(script, agent, args), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "adam", lambda state, gradient, lr: handed.append(gradient) or state)
        _, (norm, _) = script.minibatch_step(optimizer, args, optimizer.state,
                                             [x[idx] for x in batch])
    return handed[0], norm


def changeable(name: str, monkeypatch):
    """A copy of a script, in sys.modules as "varied", that a test may change."""
    spec = importlib.util.spec_from_file_location("varied", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "varied", module)
    spec.loader.exec_module(module)
    module.__name__ = name
    return module


def trained(script, run_dir: Path, **changes):
    """Train in run_dir; returns (args, agent, the run directory made)."""
    args = tiny_args(script, run_dir=str(run_dir), **changes)
    before = set(run_dir.glob("*"))
    agent = script.train(args)
    made = set(run_dir.glob("*")) - before
    assert len(made) == 1
    return args, agent, made.pop()


def rows(run: Path, without=("seconds", "SPS")) -> list[dict[str, str]]:
    """progress.csv without its clock columns."""
    with (run / "progress.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def clean_slate():
    """Undo what train() sets for a whole process."""
    Count.built.clear()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this one under nohup
    yield
    for s, handler in handlers.items():
        signal.signal(s, handler)
    torch.use_deterministic_algorithms(False)
