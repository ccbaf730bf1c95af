"""One's own runs in a figure and a table: how did they learn, and were their updates healthy?

    python benchmarks/report.py runs/RUN_1 runs/RUN_2
    python benchmarks/report.py runs --out mine.png        # all runs in a folder
    python benchmarks/report.py "runs/*Hopper*"            # or those that a pattern finds

All is read from the run directories. Runs whose flags are the same, but for the seed and for what
does not change the training, are one setting: thin lines for the runs, a thick one for their mean,
as far as all of them have come. Runs that are going on or were interrupted count as far as they
have come; what cannot be read is left out, and a line says so.
"""
import glob
import json
import os
import re
import textwrap
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from look import COLOURS, PALETTE, thousands
from matplotlib.lines import Line2D
from run import NOT_SETTINGS

IGNORED = (NOT_SETTINGS - {"exp_name"}) | {  # a name of its own is there to tell runs apart
    "algorithm", "torch_deterministic", "eval_episodes", "device", "python", "torch", "numpy",
    "gymnasium", "mujoco"}
STYLES = [(colour, dashes) for dashes in ("-", "--", ":") for colour in PALETTE]


class Panel(NamedTuple):
    title: str
    columns: tuple[str, ...]  # of progress.csv; a run's line shows the first of them that it has
    rule: str = ""  # of thumb, as in the docstring of PPO's `diagnostics` and in the README
    healthy: tuple[float, float] | None = None  # from, to; a line where both are the same
    shown: tuple[float, float] | None = None  # at least this much of the axis
    limits: tuple[float, float] = (-np.inf, np.inf)  # at most this, whatever the runs do
    log: bool = False


PANELS = (
    Panel("return, last 100 episodes", ("return_100",)),
    Panel("KL(π_old ‖ π)", ("approx_kl", "kl"), "< 0.05", (0, 0.05), (1e-3, 0.2), (1e-6, np.inf),
          log=True),
    Panel("clip fraction", ("clipfrac",), "0.1 to 0.3", (0.1, 0.3), (0, 0.4)),
    Panel("entropy", ("entropy",), "falls slowly"),
    Panel("explained variance", ("explained_variance",), "rises to 1", (1, 1), (0, 1.05),
          (-1, 1.05)),
    Panel("gradient norm", ("grad_norm",), "0.1 to 20", (0.1, 20), (0.05, 40), (1e-4, np.inf),
          log=True))
TINY = 1e-12  # for 0 on a logarithmic axis, which ends above it
THIN_LINES = 12  # of more runs one sees bands, from a setting's smallest value to its largest
CAPTION = """Thick: the mean of a setting's runs; thin lines or bands: its runs. In grey: healthy.
These ranges are rules of thumb, made for PPO: a run may learn outside, or fail inside.
KL and clip fraction fall at the end if the learning rate does."""


class UserError(Exception):
    """Something the user can mend: report.py prints it as one line and exits with code 2."""


@dataclass
class Run:
    args: dict  # args.json
    columns: dict[str, np.ndarray]  # progress.csv; NaN where a cell is empty
    evaluation: float = np.nan  # mean return, NaN if there was no evaluation

    @property
    def settings(self) -> dict:
        """The flags that make another experiment of it."""
        return {name: x for name, x in self.args.items() if name not in IGNORED}

    def curve(self, panel: Panel) -> tuple[np.ndarray, np.ndarray] | None:
        """Steps and values where there are any; None if there are none."""
        for name in panel.columns:
            seen = np.isfinite(self.columns.get(name, np.nan))
            if seen.any():
                steps, values = self.columns["global_step"][seen], self.columns[name][seen]
                return steps, np.maximum(values, TINY) if panel.log else values
        return None

    @property
    def last_return(self) -> float:
        curve = self.curve(PANELS[0])
        return float(curve[1][-1]) if curve else np.nan


@dataclass
class Notes:
    """What was left out: a line for each reason, however many runs it has."""
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, name: Path | str) -> None:
        self.names[reason].append(str(name))

    def lines(self) -> list[str]:
        return [f"{reason}: {', '.join(names)}" for reason, names in self.names.items()]


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------
def paths_of(name: str) -> list[Path]:
    """What this name stands for; shells other than Unix's leave patterns to the program."""
    name = os.path.expanduser(name)
    return [Path(found) for found in ([name] if os.path.exists(name) else sorted(glob.glob(name)))]


def find(names: list[str], notes: Notes) -> list[Path]:
    """All run directories that are, or are in, what is named; each of them once."""
    found = {}
    for path in (path for name in names for path in paths_of(name)):
        inside = {file.parent for pattern in ("args.json", "progress.csv")
                  for file in path.rglob(pattern)}
        for run_dir in sorted(inside):
            found.setdefault(run_dir.resolve(), run_dir)
        if not inside:
            notes.add("left out (no run directory)", path)
    return list(found.values())


def read_progress(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Columns of progress.csv, and how many lines are torn: a run writes whole ones, but the last
    may be on its way, and a full disk or a crash leaves parts of some."""
    *lines, rest = path.read_text("utf-8", errors="replace").split("\n")  # rest: after the last one
    header, rows = lines[0].split(",") if lines else [], []
    for line in lines[1:]:
        with suppress(ValueError, KeyError):
            row = dict(zip(header, [float(cell or "nan") for cell in line.split(",")], strict=True))
            if np.isfinite(row["global_step"]):
                rows.append(row)
    torn = len(lines[1:]) - len(rows) + bool(rest)
    return {name: np.array([row[name] for row in rows]) for name in header if rows}, torn


def read(run_dir: Path, notes: Notes) -> Run | None:
    """The run in this directory, or None and a note if there is nothing to draw."""
    try:
        args = json.loads((run_dir / "args.json").read_text("utf-8"))
        if not {"algorithm", "env_id", "seed"} <= args.keys():
            raise ValueError
    except (OSError, ValueError, AttributeError):  # the last: it is JSON, but no object
        return notes.add("left out (no usable args.json)", run_dir)
    try:
        columns, torn = read_progress(run_dir / "progress.csv")
    except OSError:
        return notes.add("left out (progress.csv cannot be read)", run_dir)
    if not columns:
        return notes.add("left out (no whole row in progress.csv yet)", run_dir)
    if torn:
        notes.add("left out (torn rows of progress.csv)", f"{torn} in {run_dir}")
    run = Run(args, columns)
    try:
        returns = json.loads((run_dir / "evaluation.json").read_text("utf-8"))["returns"]
        run.evaluation = float(np.mean(returns)) if returns else np.nan
    except (OSError, ValueError, TypeError, KeyError):
        notes.add("no usable evaluation.json", run_dir)
    return run


# --------------------------------------------------------------------------------------------------
# Settings
# --------------------------------------------------------------------------------------------------
def flag(name: str, value) -> str:
    """As one gives it to the script."""
    name = name.replace("_", "-")
    return f"--{'no-' * (not value)}{name}" if isinstance(value, bool) else f"--{name} {value}"


def by_setting(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs on one environment by label: the algorithm, and the flags in which its settings differ,
    without values that most of them share, so that an ablation's labels name what was changed.

    Scripts have other flags and defaults, so between algorithms the flags are not compared."""
    def key(run: Run) -> str:
        return json.dumps([run.args["algorithm"], run.settings], sort_keys=True)

    labels, groups = {}, defaultdict(list)
    for algorithm, group in grouped(runs, "algorithm").items():
        settings = {key(run): run.settings for run in group}
        for of_run, one in settings.items():
            named = [algorithm]
            for name, value in one.items():
                others = [other[name] for other in settings.values() if name in other]
                most = len(others) == len(settings) and others.count(value) > len(settings) / 2
                if not most:  # nor all
                    named.append(flag(name, value))
            labels[of_run] = " ".join(named)
    for run in runs:
        groups[labels[key(run)]].append(run)
    return dict(groups)


def grouped(runs: list[Run], name: str) -> dict[str, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[str(run.args[name])].append(run)
    return dict(groups)


def note_repetitions(env_id: str, settings: dict[str, list[Run]], notes: Notes) -> None:
    """The same flags and seed twice: as after a change of the code, of which no file tells."""
    for label, runs in settings.items():
        for seed, again in grouped(runs, "seed").items():
            if len(again) > 1:
                notes.add("runs of one seed with the same flags, taken together (--exp-name tells "
                          "them apart)", f"{len(again)} of seed {seed} in {env_id}, {label}")


# --------------------------------------------------------------------------------------------------
# Table
# --------------------------------------------------------------------------------------------------
def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation of what there is."""
    there = np.array([x for x in values if np.isfinite(x)])
    if not len(there):
        return "–"
    digits = 0 if np.abs(there).max() >= 100 else 2
    deviation = f" ± {there.std(ddof=1):,.{digits}f}" if len(there) > 1 else ""
    missing = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    return f"{there.mean():,.{digits}f}{deviation}{missing}"


def table(environments: dict[str, dict[str, list[Run]]]) -> str:
    """One line per setting; returns are mean ± standard deviation over its runs."""
    rows = [("environment", "setting", "seeds", "steps", "last return_100", "evaluation")]
    for env_id, settings in environments.items():
        for label, runs in settings.items():
            ends = sorted({int(run.columns["global_step"][-1]) for run in runs})
            rows.append((env_id, label, " ".join(sorted({str(run.args["seed"]) for run in runs},
                                                        key=lambda seed: (len(seed), seed))),
                         " to ".join(f"{end:,}" for end in dict.fromkeys((ends[0], ends[-1]))),
                         spread([run.last_return for run in runs]),
                         spread([run.evaluation for run in runs])))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


# --------------------------------------------------------------------------------------------------
# Figure
# --------------------------------------------------------------------------------------------------
def styles(settings: dict[str, list[Run]]) -> dict[str, tuple[str, str]]:
    """Label → (colour, dashes). An algorithm's first setting has the algorithm's colour, as in all
    other figures, and the other settings have what is left."""
    chosen = {}
    for label, runs in settings.items():
        style = (COLOURS.get(runs[0].args["algorithm"]), "-")
        if style in STYLES and style not in chosen.values():
            chosen[label] = style
    left = (style for style in STYLES if style not in chosen.values())
    return {label: chosen.get(label) or next(left) for label in settings}


def together(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) steps and (R, P) values of R curves, where all of them are: between the rows of
    progress.csv they are taken to be straight."""
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(first <= grid) & (grid <= last)]
    return grid, np.array([np.interp(grid, x, y) for x, y in curves])


def draw(axis: plt.Axes, panel: Panel, settings: dict[str, list[Run]]) -> None:
    """One panel: of each setting the mean, and the runs as thin lines or as a band."""
    bands = sum(map(len, settings.values())) > THIN_LINES
    for label, (colour, dashes) in styles(settings).items():
        thin = curves = [curve for run in settings[label] if (curve := run.curve(panel))]
        if not curves:
            continue
        x, y = together(curves)
        axis.plot(x, y.mean(0), color=colour, linestyle=dashes, label=label, zorder=3,
                  marker="o" if len(x) == 1 else None)  # a line through one point is not seen
        if bands:
            axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
            end = min(steps[-1] for steps, _ in curves)  # of the band; some have come further
            thin = [(steps[steps >= end], values[steps >= end]) for steps, values in curves]
        for curve in thin:
            axis.plot(*curve, color=colour, linestyle=dashes, linewidth=1.2, alpha=0.6)
    if panel.log:
        axis.set_yscale("log")
    axis.set_title(panel.title, loc="left", fontsize="medium")
    axis.set_xlabel("environment steps")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(thousands)
    axis.locator_params(axis="x", nbins=5)
    if panel.rule:
        axis.set_title(f"healthy: {panel.rule}", loc="right", fontsize="small", color="#444444")
    if panel.shown:
        bottom, top = axis.get_ylim()
        ends = min(bottom, panel.shown[0]), max(top, panel.shown[1])
        axis.set_ylim(np.clip(ends, *panel.limits))
    if panel.healthy:
        show_healthy(axis, panel)


def show_healthy(axis: plt.Axes, panel: Panel) -> None:
    """Shade the range, or draw a line where it is a single value."""
    low, high = panel.healthy
    if low == high:
        axis.axhline(low, color="#444444", linestyle=(0, (4, 3)), linewidth=1.5, zorder=0)
    else:
        axis.axhspan(low, high, color="black", alpha=0.1, linewidth=0, zorder=0)


def plain(text: str) -> str:
    """For Matplotlib, which takes what is between two dollars for a formula."""
    return text.replace("$", r"\$")


def figure(env_id: str, settings: dict[str, list[Run]]) -> plt.Figure:
    """The panels for which there are values, with one legend and the caption."""
    panels = [panel for panel in PANELS
              if any(run.curve(panel) for runs in settings.values() for run in runs)]
    if not panels:
        raise UserError(f"nothing to draw of {env_id}: no column that a panel shows has a value")
    if len(settings) > len(STYLES):
        raise UserError(f"{len(settings)} settings of {env_id} are too many for a figure, which "
                        f"has room for {len(STYLES)}: name fewer runs")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    texts = {label: textwrap.fill(plain(label), min(60, 40 * columns), break_on_hyphens=False)
             for label in settings}
    lines = [line for text in texts.values() for line in text.splitlines()]
    across = max(1, min(4, 48 * columns // (max(map(len, lines)) + 8)))  # entries in a row
    drawn, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=(
        5 * columns, 3.4 * rows + 1.6 + 0.3 * len(lines) / across))
    for axis, panel in zip(axes.flat, panels):
        draw(axis, panel, settings)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    handles = [Line2D([], [], color=colour, linestyle=dashes, label=texts[label])
               for label, (colour, dashes) in styles(settings).items()]
    drawn.legend(handles=handles, loc="outside upper center", ncols=across, title=plain(env_id),
                 title_fontsize="large")
    drawn.supxlabel(CAPTION, fontsize="small", color="#444444")
    return drawn


def save(drawn: plt.Figure, path: Path) -> None:
    """As PNG, and as PDF for papers."""
    try:
        drawn.savefig(path.with_suffix(".png"))
        drawn.savefig(path.with_suffix(".pdf"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(drawn)
    print(f"{path.with_suffix('.png')} (and .pdf)")


def report(names: list[str], out: Path) -> None:
    """Table and figures of the runs that these names stand for."""
    if out.suffix.lower() not in (".png", ".pdf"):
        raise UserError(f"--out {out}: must end in .png or .pdf; both are written")
    notes = Notes()
    runs = [run for path in find(names, notes) if (run := read(path, notes))]
    if not runs:
        raise UserError("nothing to draw; " + "; ".join(notes.lines()))
    environments = {env_id: by_setting(group) for env_id, group in grouped(runs, "env_id").items()}
    for env_id, settings in environments.items():
        note_repetitions(env_id, settings, notes)
    print(table(environments), *notes.lines(), sep="\n")
    for env_id, settings in environments.items():
        of_env = "-" + re.sub(r"[^\w.+=-]", "-", env_id) if len(environments) > 1 else ""
        save(figure(env_id, settings), out.with_name(out.stem + of_env + out.suffix))
