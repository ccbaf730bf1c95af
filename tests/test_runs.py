"""Part II: whole runs, their files, resuming, evaluating, being interrupted."""
import dataclasses
import gc
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import (
    ACTOR_CRITIC,
    ROOT,
    SCRIPTS,
    Broken,
    Constant,
    Count,
    OneStep,
    each,
    each_kind,
    kinds,
    make_optimizer,
    register,
    rows,
    setup,
    tiny_args,
    trained,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LEADING = ["iteration", "global_step", "seconds", "episodes", "episodic_return",
           "episodic_length", "SPS"]
REAL = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}


def scalars(run, tag):
    """(step, value) of a TensorBoard tag; [] if there is none."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return ([(e.step, e.value) for e in events.Scalars(tag)]
            if tag in events.Tags()["scalars"] else [])


def same_state(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(script, iteration, monkeypatch):
    """Press Ctrl-C at the end of this iteration."""
    log = script.Run.log

    def log_and_stop(self, *rest):
        log(self, *rest)
        if self.iteration == iteration:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(script.Run, "log", log_and_stop)


class Steps(NamedTuple):
    """As much of a rollout as Run.log looks at."""
    size: int
    episodes: list = []
    obs: torch.Tensor = torch.zeros(1)
    next_obs: torch.Tensor = torch.zeros(1)


def new_run(script, tmp_path, **changes):
    """A Run that has just begun; `finish` closes it, and evaluates nothing."""
    args, _, agent, _ = setup(script, run_dir=str(tmp_path), eval_episodes=0,
                              env_id=register(Count, kind=kinds(script)[0]), **changes)
    return script.Run(args, agent, make_optimizer(script, agent, args))


def run_in_a_process(code):
    """Run these lines of Python with the scripts on the path; returns what they printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --------------------------------------------------------------------------------------------------
# What a run leaves
# --------------------------------------------------------------------------------------------------
@each_kind(SCRIPTS)
def test_run_directory(script, kind, tmp_path):
    """Its name, args.json with versions and device, progress.csv, TensorBoard, checkpoint."""
    env_id = register(Count, kind=kind, lengths=(3, 4))
    args, agent, run = trained(script, tmp_path, env_id=env_id, seed=7, eval_episodes=2)
    assert run.name.startswith(f"{env_id.replace('/', '-')}__{script.__name__}__7__")
    saved = json.loads((run / "args.json").read_text())
    assert dataclasses.asdict(args).items() <= saved.items()
    assert {"python", "torch", "numpy", "gymnasium", "device"} <= saved.keys()
    assert saved["torch"] == torch.__version__ and saved["device"] == "cpu"
    header = (run / "progress.csv").read_text().splitlines()[0].split(",")
    assert header[:7] == LEADING and len(header) > 10 and "learning_rate" in header
    assert (run / "checkpoint.pt").is_file() and not (run / "checkpoint.tmp").exists()
    for tag in ("charts/SPS", "charts/learning_rate", "charts/episodic_length",
                "losses/policy_loss"):
        assert scalars(run, tag), tag
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation == {"actions": "deterministic", "returns": [6.0, 6.0]}


@each_kind(SCRIPTS)
def test_progress_counts_real_steps(script, kind, tmp_path):
    """Iterations, steps, episodes and mean returns are those of the Count environments."""
    env_id = register(Count, kind=kind, lengths=(4,))
    _, _, run = trained(script, tmp_path, env_id=env_id)  # T = 8, N = 2: 4 episodes an iteration
    table = rows(run)
    assert [int(row["iteration"]) for row in table] == [1, 2, 3, 4]
    assert [int(row["global_step"]) for row in table] == [16, 32, 48, 64]
    assert [int(row["episodes"]) for row in table] == [4, 8, 12, 16]
    assert all(float(row["episodic_return"]) == 10 for row in table)
    assert all(float(row["episodic_length"]) == 4 for row in table)


@each_kind(SCRIPTS)
def test_every_episode_is_logged(script, kind, tmp_path):
    """Four environments that end in the same step give four exact returns at that step."""
    env_id = register(Count, kind=kind, lengths=(3,))
    _, _, run = trained(script, tmp_path, env_id=env_id, num_envs=4, num_steps=7,
                        episodes_per_update=8, total_timesteps=28)
    assert scalars(run, "charts/episodic_return") == [(12, 6.0)] * 4 + [(24, 6.0)] * 4
    assert scalars(run, "charts/episodic_length") == [(12, 3.0)] * 4 + [(24, 3.0)] * 4


@each_kind([s for s in SCRIPTS if s.__name__ != "reinforce"])
def test_no_episode_ended(script, kind, tmp_path):
    """Then no return is logged: an empty cell, no tag, never a zero."""
    env_id = register(Count, kind=kind, lengths=(1000,))
    _, _, run = trained(script, tmp_path, env_id=env_id)
    assert all(row["episodic_return"] == row["episodic_length"] == "" for row in rows(run))
    assert all(row["episodes"] == "0" for row in rows(run))
    assert scalars(run, "charts/episodic_return") == []


@each_kind(SCRIPTS)
def test_learning_rate_falls_linearly(script, kind, tmp_path):
    """anneal_lr: 1, ¾, ½, ¼ of the learning rate in four iterations; off: constant."""
    env_id = register(Count, kind=kind, lengths=(4,))
    for anneal, factors in ((True, (1, 0.75, 0.5, 0.25)), (False, (1, 1, 1, 1))):
        _, _, run = trained(script, tmp_path, env_id=env_id, learning_rate=0.01, anneal_lr=anneal)
        rates = [float(row["learning_rate"]) for row in rows(run)]
        assert rates == pytest.approx([0.01 * f for f in factors])


@each_kind(SCRIPTS)
def test_the_optimiser_gets_the_learning_rate(script, kind, tmp_path, monkeypatch):
    """The annealed rate is the one that update finds in its optimiser."""
    update, rates = script.update, []

    def watched(agent, optimizer, *rest):
        rates.append(float(optimizer.lr))
        return update(agent, optimizer, *rest)

    monkeypatch.setattr(script, "update", watched)
    env_id = register(Count, kind=kind, lengths=(4,))
    trained(script, tmp_path, env_id=env_id, learning_rate=0.01, anneal_lr=True)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@each_kind(SCRIPTS)
def test_determinism(script, kind, tmp_path):
    """The same seed gives the same progress.csv and parameters; another seed gives others."""
    env_id = REAL[kind]
    agents, tables = [], []
    for seed in (1, 1, 2):
        _, agent, run = trained(script, tmp_path, env_id=env_id, seed=seed, num_steps=64,
                                total_timesteps=384)
        agents.append(agent.state_dict())
        tables.append(rows(run))
    assert tables[0] == tables[1] and same_state(agents[0], agents[1])
    assert tables[0] != tables[2]


class Global(Constant):
    """Its rewards come from the generators that NumPy and Python share out to everybody."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.random.rand() + random.random(), *rest


@each_kind(SCRIPTS)
def test_environments_that_draw_globally(script, kind, tmp_path):
    """They are seeded, too."""
    env_id, tables = register(Global, kind=kind), []
    for seed in (1, 1, 2):
        _, _, run = trained(script, tmp_path, env_id=env_id, seed=seed)
        tables.append([row["return_100"] for row in rows(run)])
    assert tables[0] == tables[1] != tables[2]


class Chatty(Count):
    """Its infos have an "episode" of their own; those of two environments do not fit together."""

    def reset(self, **kwargs):
        obs, _ = super().reset(**kwargs)
        return obs, {"episode": -1, "x": "text" if self.index % 2 else np.zeros(3)}

    def step(self, action):
        info = {"episode": {"r": -1}, "x": {"y": 1} if self.index % 2 else np.zeros(self.time)}
        return *super().step(action)[:4], info


@each_kind(SCRIPTS)
def test_foreign_infos(script, kind, tmp_path):
    """What an environment puts into infos changes nothing: the run is that of a silent one."""
    tables = []
    for cls in (Count, Chatty):
        env_id = register(cls, kind=kind, lengths=(4,))
        tables.append(rows(trained(script, tmp_path, env_id=env_id)[2]))
    assert tables[0] == tables[1] and tables[0][-1]["episodes"] == "16"


class Equal(OneStep):
    """Every action gets the same, nothing."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 0.0, *rest


@each_kind(SCRIPTS)
def test_equal_returns(script, kind, tmp_path):
    """Returns without any variance, as sparse rewards have them at first, do not stop the run."""
    _, _, run = trained(script, tmp_path, env_id=register(Equal, kind=kind), episodes_per_update=16)
    assert [row["return_100"] for row in rows(run)] == ["0.0"] * 4


@each(SCRIPTS)
def test_in_another_thread(script, tmp_path):
    """A run works in a thread that is not the main one, in which no signal can be caught."""
    results = []
    env_id = register(Count, kind=kinds(script)[0], lengths=(4,))
    thread = threading.Thread(
        target=lambda: results.append(trained(script, tmp_path, env_id=env_id)))
    thread.start()
    thread.join(timeout=60)
    assert len(rows(results[0][2])) == 4 and (results[0][2] / "checkpoint.pt").is_file()


@each(SCRIPTS)
def test_a_run_loads_no_compiler(script, tmp_path):
    """Without --compile a run imports nothing of torch.compile: that would take seconds."""
    flags = ["--env-id", REAL[kinds(script)[0]], "--total-timesteps", "2048", "--no-cuda",
             "--eval-episodes", "0", "--run-dir", str(tmp_path)]
    out = run_in_a_process(f"""if True:
        import sys, {script.__name__} as script
        sys.argv = {["x", *flags]}
        script.main()
        print([name for name in ("torch._inductor", "torch._dynamo", "wandb", "moviepy",
                                 "tensorflow") if name in sys.modules])""")
    assert out.splitlines()[-1] == "[]"
    run, = tmp_path.iterdir()
    assert int(rows(run)[-1]["global_step"]) >= 1024  # it was a run


# --------------------------------------------------------------------------------------------------
# Checkpoints and resuming
# --------------------------------------------------------------------------------------------------
@each_kind(SCRIPTS)
def test_checkpoint_holds_plain_values(script, kind, tmp_path):
    """It loads with weights_only=True, and restores the agent that train returned."""
    args, agent, run = trained(script, tmp_path, env_id=register(Count, kind=kind, lengths=(4,)))
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["algorithm"] == script.__name__
    assert checkpoint["args"] == dataclasses.asdict(args)
    assert checkpoint["progress"]["step"] == 64
    assert same_state(checkpoint["agent"], agent.state_dict())


@each_kind(SCRIPTS)
def test_resume_equals_an_uninterrupted_run(script, kind, tmp_path, monkeypatch, capsys):
    """Stopped after 2 of 4 iterations and resumed: the same rows and the same parameters.

    Exact, since in this environment episodes are one step long and nothing is carried over.
    """
    settings = dict(env_id=register(OneStep, kind=kind), learning_rate=0.01,
                    episodes_per_update=16)
    _, whole_agent, whole_run = trained(script, tmp_path, **settings)
    with monkeypatch.context() as patch:
        stop_after(script, 2, patch)
        args, _, run = trained(script, tmp_path, **settings)
    assert len(rows(run)) == 2
    assert f"--resume {run}" in capsys.readouterr().out
    before = set(tmp_path.iterdir())
    agent = script.train(dataclasses.replace(args, resume=str(run)))
    assert set(tmp_path.iterdir()) == before, "resuming must not make another directory"
    assert rows(run) == rows(whole_run)
    assert same_state(agent.state_dict(), whole_agent.state_dict())
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["iteration"] == 4
    assert checkpoint["progress"]["episodes"] == 64


def test_what_the_imports_left_is_frozen_once(tmp_path):
    """In a process, however many trainings: the next one's objects can still be collected."""
    ppo = next(script for script in SCRIPTS if script.__name__ == "ppo_discrete")
    ppo.freeze_once.cache_clear()
    gc.unfreeze()
    trained(ppo, tmp_path)
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()
    trained(ppo, tmp_path)
    assert gc.get_freeze_count() == 0


@each(SCRIPTS)
def test_resume_after_a_crash(script, tmp_path, monkeypatch):
    """Iteration 3 is logged, the checkpoint is of iteration 2, the last row torn: after --resume
    all is as in an uninterrupted run, in progress.csv and in TensorBoard."""
    settings = dict(env_id=register(OneStep, kind=kinds(script)[0]), episodes_per_update=16)
    _, whole_agent, whole_run = trained(script, tmp_path, **settings)
    log, checkpoints = script.Run.log, []

    def log_and_save(self, *rest):
        log(self, *rest)
        if self.iteration == 2:
            self.save()
            checkpoints.append((self.dir / "checkpoint.pt").read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "log", log_and_save)
        stop_after(script, 3, patch)
        args, _, run = trained(script, tmp_path, **settings)
    (run / "checkpoint.pt").write_bytes(checkpoints[0])
    assert len(rows(run)) == 3 and len(scalars(run, "losses/policy_loss")) == 3
    with (run / "progress.csv").open("a") as file:
        file.write("\n\n4,64,to")
    time.sleep(1)  # TensorBoard reads event files in the order of their names: of the seconds
    agent = script.train(dataclasses.replace(args, resume=str(run)))
    assert rows(run) == rows(whole_run)
    assert same_state(agent.state_dict(), whole_agent.state_dict())
    for tag in ("losses/policy_loss", "charts/episodic_return"):
        assert scalars(run, tag) == scalars(whole_run, tag)


@each_kind(SCRIPTS)
def test_restore_puts_everything_back(script, kind, tmp_path):
    """Parameters, statistics, optimiser state, step count and random numbers."""
    args, agent, run = trained(script, tmp_path, env_id=register(Count, kind=kind, lengths=(4,)))
    expected = torch.rand(3)  # drawn with the state that the checkpoint has
    torch.manual_seed(1234)
    args = dataclasses.replace(args, resume=str(run))
    other = script.Agent(script.make_envs(args), args)
    optimizer = make_optimizer(script, other, args)
    resumed = script.Run(args, other, optimizer)
    resumed.finish()
    assert torch.equal(torch.rand(3), expected)
    assert same_state(other.state_dict(), agent.state_dict())
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["optimizer"]
    assert len(optimizer.state) == len(saved) and all(map(torch.equal, optimizer.state, saved))
    assert all(x.abs().sum() > 0 for x in saved[:3])  # θ, m, v or θ, v, k
    optimizer.state[0].fill_(7)
    assert all((p == 7).all() for p in optimizer.named.values()), "no longer views of θ"
    assert (resumed.iteration, resumed.step, resumed.dir) == (4, 64, run)
    assert resumed.last_returns == [10.0] * 16 and resumed.episodes == 16
    assert resumed.seconds > 0


@each_kind(SCRIPTS)
def test_resume_with_a_larger_budget(script, kind, tmp_path):
    """A finished run goes on when it is given more steps."""
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kind),
                           episodes_per_update=16)
    script.train(dataclasses.replace(args, resume=str(run), total_timesteps=96))
    assert [int(row["global_step"]) for row in rows(run)] == [16, 32, 48, 64, 80, 96]


@each(SCRIPTS)
def test_resume_with_nothing_but_the_checkpoint(script, tmp_path):
    """A checkpoint that was copied elsewhere, alone, goes on there, with a new progress.csv."""
    args, _, run = trained(script, tmp_path, env_id=register(OneStep, kind=kinds(script)[0]),
                           episodes_per_update=16)
    (tmp_path / "copy").mkdir()
    shutil.copy(run / "checkpoint.pt", tmp_path / "copy")
    script.train(dataclasses.replace(args, resume=str(tmp_path / "copy"), total_timesteps=96))
    assert [row.get("global_step") for row in rows(tmp_path / "copy")] == ["80", "96"]


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------
@each_kind(SCRIPTS)
def test_evaluate(script, kind, tmp_path):
    """Raw returns of so many whole episodes; the agent stays as it is; repeatable."""
    args, agent, _ = trained(script, tmp_path, env_id=REAL[kind])
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    returns = script.evaluate(agent, args, 3)
    assert len(returns) == 3 and all(type(r) is float for r in returns)
    assert same_state(before, agent.state_dict())
    assert script.evaluate(agent, args, 3) == returns
    assert len(set(returns)) > 1 or kind == "discrete", "each episode starts elsewhere"


@each_kind(SCRIPTS)
def test_evaluate_deterministic_or_sampled(script, kind, tmp_path, capsys):
    """eval_deterministic plays the mode, else samples; the printed line says which."""
    env_id = register(Count, kind=kind, lengths=(20,))
    args, agent, run = trained(script, tmp_path, env_id=env_id)
    for deterministic, word in ((True, "deterministic"), (False, "sampled")):
        Count.built.clear()
        args.eval_deterministic, args.eval_episodes = deterministic, 2
        assert script.evaluate(agent, args, 2, run) == [210.0, 210.0]
        assert f"2 episodes, {word} actions: return 210.0 ± 0.0" in capsys.readouterr().out
        obs = torch.tensor([[float(e), float(t)] for e in range(2) for t in range(20)])
        with torch.no_grad():
            modes = agent.policy(obs.double()).mode.numpy()
        if kind == "continuous":  # [−1, 1] is stretched to the bounds and clipped to them
            modes = (modes * [1, 1.5] + [0, 0.5]).clip([-1, -1], [1, 2])
        played = np.stack(Count.built[0].actions)
        assert np.allclose(played, modes, atol=1e-5) == deterministic


@each(ACTOR_CRITIC[-1:])  # REINFORCE waits for the end of an episode
def test_evaluation_without_an_end(script, tmp_path, capsys):
    """Where no episode ends, the evaluation does all the same, and says so."""
    env_id = register(Count, kind=kinds(script)[0], lengths=(10**9,))
    _, _, run = trained(script, tmp_path, env_id=env_id, eval_episodes=1)
    assert "0 episodes (of 1" in capsys.readouterr().out.splitlines()[-1]
    assert json.loads((run / "evaluation.json").read_text())["returns"] == []


@each(SCRIPTS)
def test_a_fresh_process_acts_the_same(script, tmp_path):
    """--evaluate in a new process: the same statistics, so the same actions and returns."""
    env_id = REAL[kinds(script)[-1]]
    args, agent, run = trained(script, tmp_path, env_id=env_id, num_steps=256,
                               total_timesteps=1024, eval_episodes=3)
    in_training = json.loads((run / "evaluation.json").read_text())["returns"]
    before = (run / "evaluation.json").read_bytes()
    size = {"CartPole-v1": 4, "Pendulum-v1": 3}[env_id]
    obs = 3 * torch.randn(50, size)
    torch.save(obs, tmp_path / "obs.pt")
    out = run_in_a_process(f"""if True:
        import sys, torch, {script.__name__} as script
        sys.argv = ["x", "--evaluate", {str(run)!r}]
        evaluate, obs = script.evaluate, torch.load({str(tmp_path / "obs.pt")!r})
        def act_too(agent, *rest):
            acts = agent.policy(obs).mode.detach(), agent.value(obs).detach()
            torch.save(acts, {str(tmp_path / "acts.pt")!r})
            return evaluate(agent, *rest)
        script.evaluate = act_too
        script.main()
        assert "wandb" not in sys.modules""")
    assert f"return {np.mean(in_training):.1f} ± {np.std(in_training):.1f}" in out
    assert (run / "evaluation.json").read_bytes() == before  # it says how the training ended
    actions, values = torch.load(tmp_path / "acts.pt")
    assert agent.obs_stats.count == 1024 or script.__name__ == "reinforce"
    assert agent.obs_stats.mean.abs().max() > 0
    torch.testing.assert_close(actions, agent.policy(obs).mode.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(values, agent.value(obs).detach(), atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------
# Interrupted, broken
# --------------------------------------------------------------------------------------------------
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("script, sent", list(zip(SCRIPTS[-3:], SIGNALS)),
                         ids=lambda x: getattr(x, "__name__", str(x)))
def test_signals(script, sent, tmp_path):
    """Ctrl-C, SIGTERM, SIGHUP: a line at once, a checkpoint, a line on going on, exit code 0."""
    env_id = REAL[kinds(script)[0]]
    command = [sys.executable, str(ROOT / f"{script.__name__}.py"), "--env-id", env_id,
               "--num-envs", "2", "--total-timesteps", "100000000", "--no-cuda", "--run-dir",
               str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.time() + 60
        while time.time() < deadline and not any(
                path.stat().st_size for path in tmp_path.glob("*/progress.csv")):
            time.sleep(0.1)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err == "\nstopping after this iteration; Ctrl-C: at once\n"
    run, = tmp_path.iterdir()
    assert f"--resume {run}" in out.splitlines()[-1]
    steps = torch.load(run / "checkpoint.pt", weights_only=True)["progress"]["step"]
    logged = int(rows(run)[-1]["global_step"])  # iterations of fewer than 1,000 steps share a row
    assert max(0, steps - 1000) < logged <= steps


def test_two_signals():
    """The first signal is noted, as is a SIGHUP that follows; Ctrl-C then ends it, unsaved."""
    before, saved = signal.getsignal(signal.SIGINT), []
    run = types.SimpleNamespace(stopped=False, step=0, save=lambda: saved.append(1), saved=0,
                                args=types.SimpleNamespace(total_timesteps=9, batch_size=1))
    with pytest.raises(KeyboardInterrupt):
        for _ in SCRIPTS[0].Run.iterations(run):
            os.kill(os.getpid(), signal.SIGTERM)
            assert run.stopped
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert not saved and signal.getsignal(signal.SIGINT) == before


@each_kind(SCRIPTS)
def test_signals_are_ours_only_while_training(script, kind, tmp_path):
    """After train, Ctrl-C interrupts again: the evaluation, a notebook."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trained(script, tmp_path, env_id=register(Count, kind=kind))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@each([s for s in SCRIPTS if s.__name__ != "reinforce"])
def test_signals_after_a_failure(script, tmp_path):
    """A run that failed gives them back, too, even while a debugger keeps the exception."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(script.UserError) as kept:
        trained(script, tmp_path, env_id=register(Broken, kind=kinds(script)[0]))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert kept.traceback


@pytest.mark.parametrize("k", [1, 18, 20, 24, 25], ids=lambda k: f"step {k}")
@pytest.mark.parametrize("what", ["reward", "obs"])
@each_kind([s for s in SCRIPTS if s.__name__ != "reinforce"])
def test_nan_stops_the_run(script, kind, what, k, tmp_path):
    """Wherever NaN comes up, the run stops and names what it was; the checkpoint is intact.

    Steps 20 and 25 end an episode, step 24 ends a rollout (T = 8).
    """
    env_id = register(Broken, kind=kind, k=k, what=what)
    with pytest.raises(script.UserError, match=f"^(next_)?{what}s? is NaN .*step"):
        trained(script, tmp_path, env_id=env_id)
    run, = tmp_path.iterdir()
    if (run / "progress.csv").exists():
        assert not any("nan" in row.values() for row in rows(run))


@each_kind(SCRIPTS)
def test_nan_leaves_the_checkpoint_intact(script, kind, tmp_path, monkeypatch):
    """A resumed run that meets NaN leaves the checkpoint it came from, byte for byte."""
    args, _, run = trained(script, tmp_path, env_id=register(Constant, kind=kind))
    checkpoint = (run / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Constant, "step", lambda self, action: (
        np.ones(1, np.float32), math.nan, False, True, {}))
    with pytest.raises(script.UserError, match="reward"):
        script.train(dataclasses.replace(args, resume=str(run), total_timesteps=96))
    assert (run / "checkpoint.pt").read_bytes() == checkpoint


@pytest.mark.parametrize("name", ["policy_loss", "approx_kl"])
@each_kind(SCRIPTS)
def test_nan_loss_stops_the_run(script, kind, name, tmp_path, monkeypatch):
    """A loss or a KL that is not finite stops the run, by name."""
    if (script.__name__, name) == ("trpo", "approx_kl"):
        pytest.skip("its KL is exact, and its policy_loss is that after the step")
    update = script.update

    def broken(*x):
        metrics = update(*x)
        return metrics | {name: metrics[name] + math.inf}  # a metric that there is

    monkeypatch.setattr(script, "update", broken)
    with pytest.raises(script.UserError, match=f"{name} .*step 16"):
        trained(script, tmp_path, env_id=register(Count, kind=kind, lengths=(4,)))


@each(SCRIPTS)
def test_whose_nan_it_is(script, tmp_path):
    """The environment's is not blamed on the learning rate; nor is an infinity overlooked."""
    run, nan = new_run(script, tmp_path), torch.tensor([0.0, math.nan])
    with pytest.raises(script.UserError, match="^next_obs .*step 7.*environment"):
        run.log(Steps(7, next_obs=nan), {"policy_loss": 1.0})
    with pytest.raises(script.UserError, match="^value_loss .*step 14.*--learning-rate"):
        run.log(Steps(7), {"policy_loss": 1.0, "value_loss": math.inf})
    run.finish()


# --------------------------------------------------------------------------------------------------
# W&B, video, GPU
# --------------------------------------------------------------------------------------------------
@each(SCRIPTS)
def test_without_track_wandb_is_not_needed(script, tmp_path, monkeypatch):
    """A run works where `import wandb` fails."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    trained(script, tmp_path, env_id=register(Count, kind=kinds(script)[0]), eval_episodes=1)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
@each(SCRIPTS[-1:])
def test_track(script, mode, tmp_path, monkeypatch):
    """W&B without an account: offline leaves all that TensorBoard has, disabled nothing."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": mode, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    env_id = register(Count, kind=kinds(script)[0])
    try:
        script.train(tiny_args(script, env_id=env_id, track=True))
    finally:
        wandb.teardown()  # or this process keeps the mode
    run, = (path.parent for path in tmp_path.glob("runs/*/args.json"))
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    steps = [row["global_step"] for row in rows(run)]
    assert len(set(steps)) == len(steps) >= 4
    files = list(tmp_path.glob("runs/**/offline-run-*/*.wandb"))
    assert len(files) == (mode == "offline")
    for name in (b"losses/policy_loss", b"charts/episodic_return", env_id.encode()):
        assert all(name in file.read_bytes() for file in files), name


@each(SCRIPTS[-1:])
def test_track_without_an_account(script, tmp_path, monkeypatch):
    """What W&B objects to is said in one line."""
    wandb = pytest.importorskip("wandb")

    def no_account(**_):
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", no_account)
    with pytest.raises(script.UserError, match="--track: api_key not configured .*WANDB_MODE"):
        trained(script, tmp_path, env_id=register(Count, kind=kinds(script)[0]), track=True)


@each([s for s in SCRIPTS if "discrete" in kinds(s)][:1])
def test_video(script, tmp_path, monkeypatch):
    """capture_video films the evaluation: as many mp4 files as episodes, and not black."""
    pytest.importorskip("pygame")
    imageio = pytest.importorskip("imageio")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    _, _, run = trained(script, tmp_path, env_id="CartPole-v1", capture_video=True,
                        eval_episodes=2)
    videos = sorted(run.glob("videos/*.mp4"))
    assert len(videos) == 2
    with imageio.get_reader(videos[0], "ffmpeg") as reader:
        frames = [frame for frame in reader]
    assert len(frames) >= 5 and frames[2].max() > 200 and frames[2].std() > 5
    assert (frames[0] != frames[-1]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_kind(SCRIPTS)
def test_gpu(script, kind, tmp_path):
    """The same short run on the GPU (a CUDA graph) and on the CPU: nearly the same first update."""
    results = []
    for cuda in (False, True):
        args = tiny_args(script, env_id=REAL[kind], run_dir=str(tmp_path / str(cuda)), cuda=cuda,
                         num_steps=64, total_timesteps=512, num_minibatches=1, eval_episodes=2)
        agent = script.train(args)
        assert next(agent.parameters()).is_cuda == cuda
        run, = (tmp_path / str(cuda)).iterdir()
        results.append(rows(run))
        assert len(json.loads((run / "evaluation.json").read_text())["returns"]) == 2
    cpu, gpu = results
    assert len(cpu) == len(gpu) == 4
    for name, value in cpu[0].items():  # one minibatch: no shuffling, so the same update
        if value:
            assert float(gpu[0][name]) == pytest.approx(float(value), rel=0.05, abs=1e-3), name


@each(SCRIPTS)
def test_short_iterations_share_a_row(script, tmp_path):
    """Of 1,600 steps a row stands for 16: two iterations of 8, the last one's metrics, the mean of
    both's episodes. Those in no row yet are in the checkpoint. The end of the run has a row."""
    run = new_run(script, tmp_path, total_timesteps=1_600, num_envs=4, num_steps=2)
    metrics = {"policy_loss": 0.0, "learning_rate": 1.0}
    for i in range(5):
        run.log(Steps(8, [(8, float(i), 10 * i)]), metrics | {"policy_loss": float(i)})
    table = rows(run.dir)
    assert [row["global_step"] for row in table] == ["16", "32"]
    assert [row["episodic_return"] for row in table] == ["0.5", "2.5"]
    assert [row["episodic_length"] for row in table] == ["5.0", "25.0"]
    assert [row["policy_loss"] for row in table] == ["1.0", "3.0"]
    assert [row["episodes"] for row in table] == ["2", "4"]
    run.save()
    progress = torch.load(run.dir / "checkpoint.pt", weights_only=True)["progress"]
    assert progress["unlogged"] == [(8, 4.0, 40)] and progress["episodes"] == 5
    run.step, last = 1_585, 1_600 - run.args.batch_size + 1  # both in the same 16 steps
    run.log(Steps(1), metrics)  # another iteration fits
    assert rows(run.dir)[-1]["global_step"] == "32"
    run.log(Steps(last - run.step), metrics)  # and then none
    assert rows(run.dir)[-1]["global_step"] == str(last)
    run.finish()


@each(SCRIPTS)
def test_twenty_lines(script, tmp_path, capsys):
    """Where there is no terminal, a line at every 5 %, also if no row falls on it."""
    run = new_run(script, tmp_path, total_timesteps=12_345, num_steps=4)
    while run.step <= 12_345 - 8:
        run.log(Steps(8, [(8, 0.0, 1)]), {"policy_loss": 0.0, "learning_rate": 1.0})
    run.finish()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert 19 <= len(lines) <= 20  # 12,344 steps are not quite all of them


@each(SCRIPTS)
def test_a_mean_return_of_zero_is_shown(script, tmp_path, capsys):
    """It is a number, and not the same as no episode yet."""
    run = new_run(script, tmp_path)
    run.log(Steps(16, []), {"policy_loss": 0.0, "learning_rate": 1.0})
    assert "return 0.0" not in capsys.readouterr().out
    run.log(Steps(16, [(8, 0.0, 1)]), {"policy_loss": 0.0, "learning_rate": 1.0})
    run.finish()
    assert "return 0.0" in capsys.readouterr().out
