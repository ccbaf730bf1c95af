"""benchmarks/own_runs.py: `report.py runs/…` reads run directories, draws them, and says what it
left out. The runs are written by hand, so that every label, mean and axis is known; one is real."""
import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, trained

import ppo_discrete

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import own_runs  # noqa: E402
import report  # noqa: E402

PPO = {"approx_kl": 0.01, "clipfrac": 0.2, "entropy": 0.6, "explained_variance": 0.5,
       "grad_norm": 1.0}
TRPO = {"kl": 0.01, "entropy": 0.6, "explained_variance": 0.5, "grad_norm": 1.0}


def written(folder, name, algorithm="ppo_discrete", env_id="CartPole-v1", seed=1, ends=3000,
            final=30.0, evaluation=(50.0,), metrics=PPO, **flags):
    """A run directory of one row per 1,000 steps, whose return_100 ends as given."""
    run_dir = folder / name
    run_dir.mkdir(parents=True)
    args = {"algorithm": algorithm, "env_id": env_id, "seed": seed, "exp_name": algorithm,
            "run_dir": str(folder), "device": "cpu"} | flags
    (run_dir / "args.json").write_text(json.dumps(args))
    lines = [["global_step", "return_100", *metrics]]
    for step in range(1000, ends + 1, 1000):
        lines.append([step, final * step / ends, *metrics.values()])
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    (run_dir / "progress.csv").write_text(text)
    if evaluation is not None:
        (run_dir / "evaluation.json").write_text(json.dumps({"returns": list(evaluation)}))
    return run_dir


def settings_in(folder, notes=None):
    """Label → runs of all run directories in a folder, whatever their environment."""
    notes = notes or own_runs.Notes()
    runs = [own_runs.read(path, notes) for path in own_runs.find([str(folder)], notes)]
    return own_runs.by_setting([run for run in runs if run])


def panels_of(settings):
    """Title → axes of the figure's panels."""
    drawn = own_runs.figure("CartPole-v1", settings)
    own_runs.plt.close(drawn)
    return {axis.get_title(loc="left"): axis for axis in drawn.axes if axis.axison}


def command(monkeypatch, capsys, *arguments, save=False):
    """Exit code, lines of stdout and lines of stderr of report.py in this process. The figure is
    drawn, but only saved if asked for: that takes a second."""
    if not save:
        monkeypatch.setattr(own_runs, "save", lambda drawn, path: own_runs.plt.close(drawn))
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    code = 0
    try:
        report.main()
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


# --------------------------------------------------------------------------------------------------
# Settings
# --------------------------------------------------------------------------------------------------
def test_labels_name_the_flags_that_differ(tmp_path):
    """Two learning rates; another algorithm's flags are its own, and it has a single setting."""
    for seed in (1, 2):
        for rate in (0.0003, 0.1):
            written(tmp_path, f"ppo-{rate}-{seed}", seed=seed, learning_rate=rate, gamma=0.99)
        written(tmp_path, f"trpo-{seed}", "trpo", seed=seed, learning_rate=0.001, gamma=0.5)
    found = settings_in(tmp_path)
    assert {label: [run.args["seed"] for run in runs] for label, runs in found.items()} == {
        "ppo_discrete --learning-rate 0.0003": [1, 2], "ppo_discrete --learning-rate 0.1": [1, 2],
        "trpo": [1, 2]}


def test_labels_of_an_ablation_name_the_change(tmp_path):
    """What most settings share goes without saying; with two settings neither is the rule."""
    base = {"norm_obs": True, "activation": "tanh", "target_kl": None}
    for i, change in enumerate([{}, {"norm_obs": False}, {"activation": "relu"},
                                {"target_kl": 0.02}]):
        written(tmp_path, str(i), **base | change)
    assert list(settings_in(tmp_path)) == [
        "ppo_discrete", "ppo_discrete --no-norm-obs", "ppo_discrete --activation relu",
        "ppo_discrete --target-kl 0.02"]
    for i in (2, 3):
        own_runs.Path(tmp_path, str(i), "args.json").unlink()
    assert list(settings_in(tmp_path)) == ["ppo_discrete --norm-obs", "ppo_discrete --no-norm-obs"]


def test_what_does_not_change_the_training_does_not_split_a_setting(tmp_path):
    """Seed, folder, device, versions and --cuda; a name that was given does split it."""
    written(tmp_path, "a", seed=1, cuda=False, torch="2.13.0", eval_episodes=10)
    written(tmp_path / "elsewhere", "b", seed=2, cuda=True, torch="2.14.0", eval_episodes=0)
    assert [len(runs) for runs in settings_in(tmp_path).values()] == [2]
    written(tmp_path, "c", seed=1, exp_name="mine")
    assert list(settings_in(tmp_path)) == ["ppo_discrete --exp-name ppo_discrete",
                                           "ppo_discrete --exp-name mine"]


def test_a_flag_that_older_runs_lack(tmp_path):
    """A copy that got a flag of its own: its runs are not mixed with those from before."""
    for i, flags in enumerate([{}, {"bonus": 1}, {"bonus": 1, "gamma": 0.9}]):
        written(tmp_path, str(i), "my_ppo", **{"gamma": 0.99} | flags)
    assert list(settings_in(tmp_path)) == ["my_ppo", "my_ppo --bonus 1",
                                           "my_ppo --gamma 0.9 --bonus 1"]


def test_one_seed_twice_is_said(tmp_path, monkeypatch, capsys):
    """As after a change of the code that no flag tells of."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        written(tmp_path, name, seed=seed)
    _, out, _ = command(monkeypatch, capsys, tmp_path)
    assert [line for line in out if "--exp-name" in line] == [
        "runs of one seed with the same flags, taken together (--exp-name tells them apart): "
        "2 of seed 1 in CartPole-v1, ppo_discrete"]


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, steps, torn", [
    ("global_step,x\n1000,1\n2000,2\n", [1000, 2000], 0),
    ("global_step,x\n1000,1\n2000,\n", [1000, 2000], 0),  # an empty cell is no value, but whole
    ("global_step,x\n1000,1\n2000,2", [1000], 1),  # 2 may be the beginning of 25
    ("global_step,x\n1000,1\n20", [1000], 1),
    ("global_step,x\n1000,1\n2000\n3000,3\n", [1000, 3000], 1),
    ("global_step,x\n1000,1\n\0\0\0\0\n3000,3\n,4\n", [1000, 3000], 2),
    ("global_step,x\n", [], 0), ("global_st", [], 1), ("", [], 0), ("x\n1\n", [], 1)])
def test_torn_and_empty_tables(text, steps, torn, tmp_path):
    """Whole rows count, wherever the torn ones are."""
    (tmp_path / "progress.csv").write_text(text)
    columns, lost = own_runs.read_progress(tmp_path / "progress.csv")
    assert list(columns.get("global_step", [])) == steps and lost == torn


def test_an_empty_cell_is_no_value(tmp_path):
    """return_100 is empty until an episode has ended: the curve begins after that."""
    run_dir = written(tmp_path, "a")
    (run_dir / "progress.csv").write_text("global_step,return_100,kl\n1,,nan\n2,5,nan\n3,inf,nan\n")
    run = own_runs.read(run_dir, own_runs.Notes())
    steps, values = run.curve(own_runs.PANELS[0])
    assert (list(steps), list(values), run.last_return) == ([2], [5], 5)
    assert run.curve(own_runs.PANELS[1]) is None


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    """The rest is drawn; of each reason there is one line, whatever the number of runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "torn", "empty", "new", "damaged", "foreign", "lost"):
        written(tmp_path / "runs", name, evaluation=(7.0,) if name == "good" else None)
    runs = tmp_path / "runs"
    with (runs / "torn/progress.csv").open("a") as file:
        file.write("4000,4")
    (runs / "empty/progress.csv").write_text("")
    (runs / "new/progress.csv").write_text("global_step,return_100\n")
    (runs / "damaged/args.json").write_text('{"algorithm": "ppo_')
    (runs / "foreign/args.json").write_text('["algorithm", "env_id", "seed"]')
    (runs / "lost/progress.csv").unlink()
    (tmp_path / "notes").mkdir()
    code, out, err = command(monkeypatch, capsys, "runs", "notes")
    assert (code, err) == (0, [])
    assert out[1].split() == "CartPole-v1 ppo_discrete 1 3,000 30.00 ± 0.00 7.00 (1 of 2)".split()
    assert out[2:] == [
        "left out (no run directory): notes",
        "left out (no usable args.json): runs/damaged, runs/foreign",
        "left out (no whole row in progress.csv yet): runs/empty, runs/new",
        "left out (progress.csv cannot be read): runs/lost",
        "left out (torn rows of progress.csv): 1 in runs/torn",
        "no usable evaluation.json: runs/torn",
        "runs of one seed with the same flags, taken together (--exp-name tells them apart): "
        "2 of seed 1 in CartPole-v1, ppo_discrete"]


@pytest.mark.parametrize("names", [["runs/a", "runs/deep/b"], ["runs"], ["runs/[ad]*"],
                                   ["runs", "runs/a", "../here/runs/deep"]])
def test_runs_are_found_once(names, tmp_path, monkeypatch):
    """By path, in a folder however deep, by a pattern that no shell has expanded."""
    written(tmp_path / "here/runs", "a")
    written(tmp_path / "here/runs/deep", "b")
    monkeypatch.chdir(tmp_path / "here")
    found = own_runs.find(names, own_runs.Notes())
    assert [path.as_posix() for path in found] == ["runs/a", "runs/deep/b"]


# --------------------------------------------------------------------------------------------------
# Table
# --------------------------------------------------------------------------------------------------
def test_table(tmp_path):
    """By hand: 110 and 130 have mean 120 and sample standard deviation 14.1; 1.0 alone has none."""
    written(tmp_path, "a", seed=10, final=130.0, gamma=0.9, evaluation=[200.0, 220.0])
    written(tmp_path, "b", seed=2, final=110.0, gamma=0.9, evaluation=[190.0], ends=2000)
    written(tmp_path, "c", seed=1, final=1.0, gamma=0.5, evaluation=None)
    lines = own_runs.table({"CartPole-v1": settings_in(tmp_path)}).splitlines()
    assert lines == [
        "environment  setting                   seeds  steps           last return_100  evaluation",
        "CartPole-v1  ppo_discrete --gamma 0.9  2 10   2,000 to 3,000  120 ± 14         200 ± 14",
        "CartPole-v1  ppo_discrete --gamma 0.5  1      3,000           1.00             –"]


# --------------------------------------------------------------------------------------------------
# Figure
# --------------------------------------------------------------------------------------------------
ALL = ["return, last 100 episodes", "KL(π_old ‖ π)", "clip fraction", "entropy",
       "explained variance", "gradient norm"]


@pytest.mark.parametrize("metrics, titles", [
    ([PPO], ALL), ([TRPO], [title for title in ALL if title != "clip fraction"]),
    ([TRPO, PPO], ALL), ([{}], ALL[:1]), ([{"clipfrac": "", "entropy": "nan"}], ALL[:1])])
def test_panels_for_which_there_are_values(metrics, titles, tmp_path):
    for i, columns in enumerate(metrics):
        written(tmp_path, str(i), str(i), metrics=columns)
    panels = panels_of(settings_in(tmp_path))
    assert list(panels) == titles
    assert all(axis.get_xlabel() == "environment steps" for axis in panels.values())


def test_healthy_ranges(tmp_path):
    """Each is where the docstring of PPO's diagnostics has it, in sight, and in the panel's text;
    the caption says what they are worth."""
    written(tmp_path, "a")
    settings = settings_in(tmp_path)
    panels = panels_of(settings)
    spans = {title: axis.patches[0].get_bbox().intervaly for title, axis in panels.items()
             if axis.patches}
    assert {title: tuple(span) for title, span in spans.items()} == {
        "KL(π_old ‖ π)": (0, 0.05), "clip fraction": (0.1, 0.3), "gradient norm": (0.1, 20)}
    assert [title for title in ALL if panels[title].get_yscale() == "log"] == [
        "KL(π_old ‖ π)", "gradient norm"]
    for title, (_, high) in spans.items():
        assert panels[title].get_ylim()[1] > high
    ones = [line for line in panels["explained variance"].lines if set(line.get_ydata()) == {1}]
    assert len(ones) == 1 and panels["explained variance"].get_ylim()[1] == 1.05
    assert [panels[title].get_title(loc="right") for title in ALL] == [
        "", "healthy: < 0.05", "healthy: 0.1 to 0.3", "healthy: falls slowly",
        "healthy: rises to 1", "healthy: 0.1 to 20"]
    for text in ("approx_kl < 0.05", "clipfrac 0.1–0.3", "grad_norm 0.1–20"):
        assert text in " ".join(ppo_discrete.diagnostics.__doc__.split())
    assert "rules of thumb" in own_runs.figure("X", settings).get_supxlabel()


def test_wild_values_do_not_hide_the_healthy_range(tmp_path):
    """An explained variance of −5,000, a KL of 0 and of 1e-30: the axes end where it matters."""
    wild = {"approx_kl": 0, "clipfrac": 0, "explained_variance": -5000, "grad_norm": 1e-30}
    written(tmp_path, "a", metrics=wild)
    panels = panels_of(settings_in(tmp_path))
    assert panels["explained variance"].get_ylim() == (-1, 1.05)
    assert panels["KL(π_old ‖ π)"].get_ylim() == pytest.approx((1e-6, 0.2))
    assert panels["gradient norm"].get_ylim() == pytest.approx((1e-4, 40))
    low, high = panels["clip fraction"].get_ylim()
    assert low <= 0 and high == 0.4


def curves(axis):
    """(label or None, steps, values, width) of the lines that are runs or means."""
    return [(None if line.get_label().startswith("_") else line.get_label(),
             list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth())
            for line in axis.lines]


def test_the_mean_of_the_seeds(tmp_path):
    """By hand: one ends at 30 after 3,000 steps, one at 80 after 2,000. The mean goes as far as
    both, thick; the runs go on, thin, in the colour of their mean."""
    written(tmp_path, "a", seed=1, final=30.0, ends=3000)
    written(tmp_path, "b", seed=2, final=80.0, ends=2000)
    axis = panels_of(settings_in(tmp_path))["return, last 100 episodes"]
    mean, *runs = curves(axis)
    assert mean[:3] == ("ppo_discrete", [1000, 2000], [25, 50])
    assert [run[:3] for run in runs] == [(None, [1000, 2000, 3000], [10, 20, 30]),
                                         (None, [1000, 2000], [40, 80])]
    assert max(run[3] for run in runs) < mean[3]
    assert len({line.get_color() for line in axis.lines}) == 1


def test_a_mean_between_rows(tmp_path):
    """Rows at other steps, as REINFORCE's are: 10 at 1,000, 15 at 1,500; 30 at 1,500."""
    for name, rows in (("a", "1000,10\n2000,20\n"), ("b", "1500,30\n2500,30\n")):
        run_dir = written(tmp_path, name, seed=len(name))
        (run_dir / "progress.csv").write_text("global_step,return_100\n" + rows)
    axis = panels_of(settings_in(tmp_path))["return, last 100 episodes"]
    assert curves(axis)[0][1:3] == ([1500, 2000], [22.5, 25])


def test_runs_of_one_row_are_seen(tmp_path):
    """A run that has just begun is a dot, and so is the mean where two meet in a single row."""
    written(tmp_path, "a", ends=1000)
    for axis in panels_of(settings_in(tmp_path)).values():
        assert axis.lines[0].get_marker() == "o"
    written(tmp_path, "b", ends=2000, seed=2)
    assert panels_of(settings_in(tmp_path))["entropy"].lines[0].get_marker() == "o"
    run_dir = written(tmp_path, "c", seed=3)  # begins where the first one has ended
    (run_dir / "progress.csv").write_text("global_step,return_100\n2000,1\n3000,1\n")
    assert curves(panels_of(settings_in(tmp_path))["return, last 100 episodes"])[0][1] == []


def test_many_runs_are_a_band(tmp_path, monkeypatch):
    """From the smallest to the largest value; who has come further than all goes on as a line."""
    monkeypatch.setattr(own_runs, "THIN_LINES", 2)
    for seed, ends in ((1, 2000), (2, 2000), (3, 3000)):
        written(tmp_path, str(seed), seed=seed, ends=ends, final=seed * ends / 100)
    axis = panels_of(settings_in(tmp_path))["return, last 100 episodes"]
    mean, *rest = curves(axis)
    assert mean[1:3] == ([1000, 2000], [20, 40])
    assert [(x, y) for _, x, y, _ in rest if len(x) > 1] == [([2000, 3000], [60, 90])]
    (band,) = axis.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(1000, 10), (2000, 20), (1000, 30), (2000, 60)}


def test_colours(tmp_path):
    """An algorithm's first setting has its colour of the other figures; no two look the same."""
    for i in range(20):
        written(tmp_path, f"ppo-{i:02}", gamma=i, metrics={})
    written(tmp_path, "trpo", "trpo", metrics={})
    settings = settings_in(tmp_path)
    found = own_runs.styles(settings)
    assert found["ppo_discrete --gamma 0"] == (own_runs.COLOURS["ppo_discrete"], "-")
    assert found["trpo"] == (own_runs.COLOURS["trpo"], "-")
    assert len(set(found.values())) == len(settings) == len(own_runs.STYLES) == 21
    legend = own_runs.figure("X-v0", settings).legends[0]
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == list(settings)
    assert [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()] == list(
        found.values())
    assert legend.get_title().get_text() == "X-v0"
    settings["one more"] = settings["trpo"]
    with pytest.raises(own_runs.UserError, match="22 settings of X-v0 are too many"):
        own_runs.figure("X-v0", settings)


@pytest.mark.parametrize("flags", [{}, {"activation": "relu" * 20, "exp_name": "$x_$"}])
def test_nothing_overlaps(flags, tmp_path):
    """Legend, panels with their titles and the caption are apart, and the legend is as wide as the
    figure at most, however long the labels are. (A bare $x_$ would be a formula, and a wrong one.)
    """
    for gamma in (0.6, 0.7, 0.8, 0.9):
        written(tmp_path, str(gamma), gamma=gamma, **flags if gamma > 0.7 else {})
    drawn = own_runs.figure("CartPole-v1", settings_in(tmp_path))
    drawn.draw_without_rendering()
    legend = drawn.legends[0].get_window_extent()
    boxes = [legend, drawn._supxlabel.get_window_extent(),
             *(axis.get_tightbbox() for axis in drawn.axes)]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    assert drawn.bbox.x0 <= legend.x0 and legend.x1 <= drawn.bbox.x1


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------
def test_files(tmp_path, monkeypatch, capsys):
    """Where --out says, as PNG and PDF; one figure per environment, report-….png here without."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs", "a", metrics={})
    draw = functools.partial(command, monkeypatch, capsys, save=True)
    assert draw("runs/a", "--out", "runs/my.own.pdf")[1][-1] == "runs/my.own.png (and .pdf)"
    written(tmp_path / "runs", "b", env_id="my_envs:Corridor-v0", metrics={})
    assert draw("runs")[1][-2:] == ["report-CartPole-v1.png (and .pdf)",
                                    "report-my_envs-Corridor-v0.png (and .pdf)"]
    made = {"runs/my.own", "report-CartPole-v1", "report-my_envs-Corridor-v0"}
    for name in made:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.rglob("*.p[nd][gf]"))) == 2 * len(made)


@pytest.mark.parametrize("arguments, text", [
    (["comprae"], "'comprae': neither a part of the report (clip, speed, compare, ablation, "
     "actions, sensitivity, discount, health, peers) nor a run directory, a folder of them or a "
     "pattern for them"),
    (["runs/*Hopper*"], "'runs/*Hopper*': neither a part of the report ("),
    (["runs", "no\nsuch"], "'no\\nsuch': neither"), ([""], "'': neither"),
    (["compare", "runs"], "compare runs: give parts of the report or run directories, not both"),
    (["runs", "--out", "x.svg"], "--out x.svg: must end in .png or .pdf"),
    (["runs", "--out", "no/x.png"], "cannot write no/x.png: No such file or directory"),
    (["no\nrun"], "nothing to draw; left out (no run directory): no run"),
    (["begun"], "nothing to draw; left out (no whole row in progress.csv yet): begun"),
    (["odd"], "nothing to draw of CartPole-v1: no column that a panel shows has a value")])
def test_errors_are_one_line(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no\nrun").mkdir()
    written(tmp_path / "runs", "a", metrics={})
    (written(tmp_path, "begun") / "progress.csv").write_text("")
    (written(tmp_path, "odd") / "progress.csv").write_text("global_step,speed\n1000,7\n")
    code, _, err = command(monkeypatch, capsys, *arguments, save=True)
    assert code == 2 and len(err) == 1
    assert err[0].startswith(f"report.py: {text}")


@pytest.mark.parametrize("parts", [(), ("compare", "clip")])
def test_parts_of_the_report_are_no_paths(parts, tmp_path, monkeypatch, capsys):
    """Without run directories all is as it was, even where a folder has the name of a suite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare").mkdir()
    calls = []
    monkeypatch.setattr(report, "report", lambda *call: calls.append(call))
    assert command(monkeypatch, capsys, *parts, "--results", "mine") == (0, [], [])
    assert calls == [(parts, own_runs.Path("mine"))]


def without(packages, *arguments, folder):
    """report.py in a process in which these packages are not installed."""
    code = (f"import runpy, sys; sys.modules.update(dict.fromkeys({packages!r})); "
            f"sys.argv[:] = {['report.py', *map(str, arguments)]!r}; "
            f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); "
            f"runpy.run_path({str(ROOT / 'benchmarks/report.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def test_own_runs_need_matplotlib_and_numpy_only(tmp_path):
    """Of benchmarks/requirements.txt, that is; nor what only Unix has."""
    written(tmp_path, "a", metrics={})
    done = without(["rliable", "scipy", "pandas", "stable_baselines3", "sb3_contrib", "submitit",
                    "resource"], "a", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nreport.png (and .pdf)\n") and (tmp_path / "report.png").exists()


def test_without_matplotlib(tmp_path):
    """One line says how to get it."""
    done = without(["matplotlib"], "a", folder=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "report.py needs matplotlib: pip install -r requirements.txt matplotlib\n")


def test_suites_without_rliable(tmp_path, monkeypatch, capsys):
    """One line says how to get it, and no table is half written."""
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setitem(sys.modules, "rliable", None)
    shutil.copy(ROOT / "benchmarks/results/actions.csv.gz", tmp_path)
    code, _, err = command(monkeypatch, capsys, "actions", "--results", tmp_path)
    assert (code, err) == (2, ["report.py: this needs rliable: pip install -r "
                               "benchmarks/requirements.txt"])
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("parts, missing", [
    ((), "no run has today's settings"), (("clip", "health"), "no health.csv.gz"),
    (("speed",), "no speed.csv")])
def test_results_that_are_not_there(tmp_path, monkeypatch, capsys, parts, missing):
    """Nothing is drawn, not even what needs no runs."""
    monkeypatch.setattr(report, "HERE", tmp_path)
    code, _, (err,) = command(monkeypatch, capsys, *parts, "--results", tmp_path / "none")
    assert code == 2 and missing in err and list(tmp_path.iterdir()) == []


def test_a_real_run(tmp_path, monkeypatch, capsys):
    """What a script writes is what is read: six panels, the evaluation, no notes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    trained(ppo_discrete, tmp_path / "runs", env_id="CartPole-v1", total_timesteps=256,
            num_steps=32, eval_episodes=2)
    capsys.readouterr()
    code, out, err = command(monkeypatch, capsys, "runs")
    assert (code, err, len(out)) == (0, [], 2)
    assert out[1].split()[:4] == ["CartPole-v1", "ppo_discrete", "1", "256"] and "–" not in out[1]
    assert list(panels_of(settings_in(tmp_path))) == ALL
    (label,) = settings_in(tmp_path)
    values = settings_in(tmp_path)[label][0].columns
    assert np.isfinite(values["clipfrac"]).all() and len(values["clipfrac"]) == 4
