"""Optimizer.recorded and the CUDA graph: without a GPU a fake graph takes its place."""
import copy

import pytest
import torch
from conftest import (
    ACTOR_CRITIC,
    PPO,
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeGraph(TorchDispatchMode):
    """As a CUDA graph: recording changes nothing, and replay() runs the same operations again, on
    the same memory. What asks for a number's value cannot be recorded."""

    def __init__(self):
        super().__init__()
        self.calls, self.overwritten = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), "a graph cannot wait for a number"
        if function._schema.is_mutable:
            self.overwritten += [(x, x.clone()) for x in tree_leaves(args) if torch.is_tensor(x)]
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        for x, before in reversed(self.overwritten):
            x.copy_(before)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr():  # else a view, or changed in place
                    old.copy_(new)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


def pretend_gpu(optimizer, monkeypatch):
    """From now on `optimizer` believes to be on a GPU; a list that fills with its graphs."""
    graphs = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    optimizer.lr = optimizer.lr.as_subclass(OnGpu)
    return graphs


def optimizer_of(script):
    """An optimiser whose state is random."""
    args, _, agent, _ = setup(script, env_id=register(Count, kind=kinds(script)[0]))
    optimizer = make_optimizer(script, agent, args)
    for x in optimizer.state:
        x.normal_()
    return optimizer


def add(state, minibatch):
    """A step that adds the minibatch's sum to all of the state, and returns it."""
    total = minibatch[0].sum()
    return [x + total for x in state], [total]


@each(SCRIPTS)
def test_recording_leaves_no_trace(script, monkeypatch):
    """After recorded() the whole state is as it was, in the same memory, and so are its buffers."""
    optimizer = optimizer_of(script)
    graphs, given = pretend_gpu(optimizer, monkeypatch), torch.ones(2, 3)
    before, places = [x.clone() for x in optimizer.state], [x.data_ptr() for x in optimizer.state]
    optimizer.recorded(lambda minibatches: optimizer.once(add, minibatches), [given])
    assert all(map(torch.equal, optimizer.state, before))
    assert [x.data_ptr() for x in optimizer.state] == places
    assert len(graphs) == 1 and torch.equal(given, torch.ones(2, 3))


@each(SCRIPTS)
def test_replays_see_new_minibatches(script, monkeypatch):
    """run() records once; each call sees the minibatches it is given and leaves them as they are,
    the state goes on from call to call, and no result is overwritten by the next call."""
    optimizer = optimizer_of(script)
    graphs, before = pretend_gpu(optimizer, monkeypatch), [x.clone() for x in optimizer.state]
    given = [torch.full((2, 3), float(x)) for x in (1, 2, 5)]
    results = [optimizer.run(add, [x])[0] for x in given]
    assert [result.tolist() for result in results] == [[3, 3], [6, 6], [15, 15]]
    assert [x.unique().tolist() for x in given] == [[1], [2], [5]]
    for now, x in zip(optimizer.state, before):
        torch.testing.assert_close(now, x + 2 * (3 + 6 + 15))
    assert len(graphs) == 1


@each_kind(ACTOR_CRITIC)
def test_updates_through_the_graph_equal_eager_ones(script, kind, monkeypatch):
    """Two updates, the second with half the learning rate, one that --target-kl ends among them:
    through the (fake) graph the same state and metrics, bit for bit, and recorded once."""
    args, envs, agent, obs = setup(script, env_id=register(Count, kind=kind, lengths=(3, 4)),
                                   num_steps=16, num_minibatches=4, update_epochs=4)
    if script in PPO:
        args.target_kl, args.learning_rate = {"ppo_discrete": 2e-4, "ppo_continuous": 2e-3}[
            script.__name__], 1e-3
    rollout, _ = script.collect_rollout(agent, envs, obs, args)
    states, metrics, graphs = [], [], []
    for gpu in (False, True):
        twin = copy.deepcopy(agent)
        optimizer = make_optimizer(script, twin, args)
        graphs = pretend_gpu(optimizer, monkeypatch) if gpu else []
        torch.manual_seed(5)
        metrics.append([learn(script, twin, optimizer, rollout, args)])
        optimizer.lr.mul_(0.5)
        metrics[-1].append(learn(script, twin, optimizer, rollout, args))
        states.append(optimizer.state)
    assert len(graphs) == 1
    assert all(map(torch.equal, *states)) and metrics[0] == metrics[1]
    if script in PPO:
        assert any(1 < m["gradient_steps"] < 16 for m in metrics[0]), metrics[0]


@each(PPO)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_update_equals_eager(script):
    """Two updates on the GPU, through the graph, move θ as two on the CPU do."""
    thetas = []
    for cuda in (False, True):
        env_id = {"ppo_discrete": "CartPole-v1"}.get(script.__name__, "HalfCheetah-v4")
        args = script.Args(env_id=env_id, num_envs=2, num_steps=32, num_minibatches=4,
                           update_epochs=3, cuda=cuda)
        device, envs = script.start(args), script.make_envs(args)
        agent = script.Agent(envs, args).to(device)
        optimizer = make_optimizer(script, agent, args)
        obs, _ = envs.reset(seed=1)
        for _ in range(2):
            rollout, obs = script.collect_rollout(agent, envs, obs, args)
            batch = script.make_batch(agent, rollout, args)
            assert script.update(agent, optimizer, batch, args)["gradient_steps"] == 12
        thetas.append(optimizer.state[0].cpu())
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=1e-4)
