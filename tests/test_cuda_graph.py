"""Section 7: what can be tested of the CUDA graph without a GPU."""
import contextlib

import pytest
import torch
from conftest import SCRIPTS, each

PPO = [s for s in SCRIPTS if hasattr(s, "cuda_graph")]


class FakeGraph:
    """Like a CUDA graph it runs the recorded step again on the same memory, knowing no arguments."""

    def replay(self):
        self.result.copy_(self.step(self.idx))


@each(PPO)
def test_cuda_graph_replays_on_new_indices(script, monkeypatch):
    """Each replay sees the indices it is given, and its result is not overwritten by the next."""
    graphs = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph()) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    values = torch.arange(10.0)

    def step(idx):
        result = values[idx].sum()
        if not hasattr(graphs[-1], "step"):  # the recording
            graphs[-1].step, graphs[-1].idx, graphs[-1].result = step, idx, result
        return result

    example = torch.tensor([1, 2])
    replay = script.cuda_graph(step, example)
    results = [replay(torch.tensor(idx)) for idx in ([3, 4], [0, 9], [5, 5])]
    assert [r.item() for r in results] == [7.0, 9.0, 10.0]
    assert example.tolist() == [1, 2]


@each(PPO)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_update_equals_eager(script):
    """One update on the GPU, through the graph, moves θ as one on the CPU does."""
    thetas = []
    for cuda in (False, True):
        args = script.Args(env_id={"ppo_discrete": "CartPole-v1"}.get(script.__name__,
                                                                     "HalfCheetah-v4"),
                           num_envs=2, num_steps=32, num_minibatches=1, update_epochs=3, cuda=cuda)
        device, envs = script.start(args), script.make_envs(args)
        agent = script.Agent(envs, args).to(device)
        optimizer = script.make_optimizer(agent, args)
        obs, _ = envs.reset(seed=1)
        rollout, _ = script.collect_rollout(agent, envs, obs, args)
        metrics = script.update(agent, optimizer, rollout, args)
        assert metrics["gradient_steps"] == 3
        thetas.append(optimizer.theta.cpu())
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=1e-5)
