"""Optimizer.recorded: what can be tested of the CUDA graph without a GPU."""
import contextlib

import pytest
import torch
from conftest import PPO, SCRIPTS, Count, each, make_optimizer, register, setup


class FakeGraph:
    """Like a CUDA graph it does again what was done while recording, on the same memory."""

    def replay(self):
        self.again()


@each([s for s in SCRIPTS if s.__name__ != "ppo_discrete"])
def test_recorded_loop_replays_on_new_minibatches(script, monkeypatch):
    """The warm-up leaves no trace in the state; each replay sees the minibatches it is given,
    changes the state, and its result is not overwritten by the next one. Recorded once."""
    args, _, agent, _ = setup(script, env_id=register(Count, kind="continuous"))
    optimizer, graphs, out = make_optimizer(script, agent, args), [], torch.zeros(2)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())

    def loop(minibatches):
        optimizer.state[-1] += minibatches[0].sum()  # stands for what steps do to the state
        out.copy_(minibatches[0].sum(1))
        graphs[0].again = lambda: loop(minibatches)
        return [out]

    given = torch.ones(2, 3)
    replay = optimizer.recorded(loop, [given])
    assert optimizer.state[-1] == 6  # from the recording, which a real graph does not run
    results = [replay([torch.full((2, 3), float(x))])[0] for x in (1, 2, 5)]
    assert [result.tolist() for result in results] == [[3, 3], [6, 6], [15, 15]]
    assert len(graphs) == 1 and optimizer.state[-1] == 6 + 6 * (1 + 2 + 5)


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
