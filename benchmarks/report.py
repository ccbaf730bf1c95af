"""Tables and figures from the runs in results/; or a figure and a table of one's own runs.

    python benchmarks/report.py                # all that there are results for
    python benchmarks/report.py compare clip   # some of the figures; all tables, but speed.md
    python benchmarks/report.py runs/RUN ...   # run directories, or a folder of them: own_runs.py

Without run directories it writes tables/*.md and figures/*.png (and .pdf, for papers) beside this
file. The statistic is the mean raw return of the last 100 training episodes: one number per run.
IQM: mean of the middle half of the runs, with its 95 % stratified bootstrap interval (Agarwal et
al. 2021, by rliable). It needs five runs: of three or four the interval would be their range.
"""
import itertools
import json
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
try:  # rliable and scipy are imported where they are used: one's own runs do not need them
    import matplotlib.pyplot as plt
    import numpy as np
    import own_runs
    import run as suites
    import speed as races
    import tyro
    from look import COLOURS, thousands
except ImportError as missing:
    print(f"report.py needs {(missing.name or str(missing)).partition('.')[0]}: "
          "pip install -r requirements.txt matplotlib", file=sys.stderr)
    sys.exit(2)

NAMES = {"reinforce": "REINFORCE", "a2c": "A2C", "ppo_discrete": "PPO", "ppo_continuous": "PPO",
         "trpo": "TRPO"}
MARKS = {  # a return to have reached; MuJoCo's are RLlib's
    "CartPole-v1": 475, "LunarLander-v3": 200, "BipedalWalker-v3": 300, "Pendulum-v1": -200,
    "HalfCheetah-v4": 2000, "Hopper-v4": 2250, "Walker2d-v4": 3500}
RESAMPLES = 2_000  # of the bootstrap


@dataclass
class Run:
    experiment: suites.Experiment
    seed: int
    columns: dict[str, np.ndarray]  # progress.csv, thinned; NaN where it has nothing
    evaluation: list[float]  # returns of the deterministic evaluation after training
    settings: dict  # of the script, or of the peer's library

    @property
    def final(self) -> float:
        """Mean raw return of the last 100 training episodes."""
        return float(self.columns["return_100"][-1])

    @property
    def best(self) -> float:
        """The largest mean of 100 episodes in the course of training."""
        means = self.columns["return_100"][self.columns["episodes"] >= 100]
        return float(np.max(means, initial=self.final))

    @property
    def evaluated(self) -> float:
        """Mean return of the evaluation; NaN if there was none."""
        return float(np.mean(self.evaluation)) if self.evaluation else np.nan

    @property
    def length(self) -> float:
        """Mean length of episodes: mean over the rows of the run's last tenth."""
        late = self.columns["global_step"] > 0.9 * self.columns["global_step"][-1]
        lengths = self.columns["episodic_length"][late]
        return float(lengths[np.isfinite(lengths)].mean()) if np.isfinite(lengths).any() else np.nan

    @property
    def steps_to_mark(self) -> float:
        """Steps until return_100 first was at the environment's mark; infinite if never."""
        reached = ((self.columns["return_100"] >= MARKS.get(self.experiment.env_id, np.inf))
                   & (self.columns["episodes"] >= 100))
        return float(self.columns["global_step"][reached.argmax()]) if reached.any() else np.inf


def load(*paths: Path) -> dict[suites.Experiment, list[Run]]:
    """All runs in these tables, by experiment, but for those of settings that are no longer the
    experiment's. Of other libraries all runs of an experiment must be alike in their settings and
    in the versions that the table has. If runs of ours differ, a line is printed that says in
    what."""
    runs, made_by = defaultdict(list), defaultdict(list)
    for path in paths:
        table = suites.read(path)
        old = {run for run, rows in table.items()
               if path.name != "trials.csv.gz" and not suites.is_done(run[0], rows)}
        if old:
            print(f"{path.name}: {len(old)} runs have settings of another time and are left out")
        for job, seed in table.keys() - old:
            rows = table[job, seed]
            names = [name for name in rows[-1] if name not in suites.KEY + suites.LAST]
            columns = {name: np.array([float(row[name] or "nan") for row in rows])
                       for name in names}
            evaluation, settings = (json.loads(rows[-1][name] or "{}") for name in
                                    ("evaluation", "settings"))
            if any(run.seed == seed for run in runs[job]):
                raise own_runs.UserError(f"{job.name}, seed {seed}, is in two tables")
            runs[job].append(Run(job, seed, columns, list(evaluation), settings))
            made_by[job].append(settings | json.loads(rows[-1]["versions"] or "{}"))
    for job, facts in made_by.items():
        names = sorted({name for one in facts for name in one
                        if any(other.get(name) != one[name] for other in facts)})
        text = f"{job.name}: its runs differ in, or do not all record: {', '.join(names)}"
        if names and job.script in suites.NOT_OURS:
            raise own_runs.UserError(f"{text}; run all of its seeds anew, into another folder "
                                     "(--results)")
        if names:
            print(text)
    return {job: sorted(runs[job], key=lambda run: run.seed) for job in sorted(runs)}


# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------
def iqm(finals: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of (n,) runs, and the ends of its 95 % bootstrap interval."""
    from rliable import library, metrics

    np.random.seed(0)  # rliable draws from the global generator, whatever random_state it is given
    points, intervals = library.get_interval_estimates(
        {"": finals[:, None]}, lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=RESAMPLES)
    return float(points[""][0]), *map(float, intervals[""][:, 0])


def classic(runs: dict[suites.Experiment, list[Run]]) -> str:
    """The tasks without a simulator to install, whatever the flags."""
    lines = ["| script | environment | steps | seeds | last 100 episodes | worst | evaluation | "
             "flags |", "|---|---|" + "---:|" * 5 + "---|"]
    for job in sorted((*suites.compare(), *suites.per_task())):
        if job.env_id in suites.CLASSIC and job in runs:
            group = runs[job]
            finals = np.array([run.final for run in group])
            steps = np.median([run.columns["global_step"][-1] for run in group])
            lines.append(f"| {job.script} | {job.env_id} | {steps:,.0f} | {len(group)} | "
                         f"{spread(finals)} | {finals.min():,.0f} | "
                         f"{spread(np.array([run.evaluated for run in group]))} | "
                         f"{f'`{job.flags}`' if job.flags else 'default'} |")
    return "\n".join(lines) + "\n"


def spread(values: np.ndarray) -> str:
    deviation = f" ± {values.std(ddof=1):,.0f}" if len(values) > 1 else ""
    return f"{values.mean():,.0f}{deviation}"


def table(runs: dict[suites.Experiment, list[Run]]) -> str:
    lines = ["| script | environment | flags | seeds | last 100 episodes | IQM (95 % interval) | "
             "worst | evaluation | steps to mark (runs) | minutes |", "|---|---|---|" + "---:|" * 7]
    for job, group in runs.items():
        finals = np.array([run.final for run in group])
        interval = "{:,.0f} ({:,.0f} to {:,.0f})".format(*iqm(finals)) if len(group) >= 5 else "–"
        minutes = np.median([run.columns["seconds"][-1] for run in group]) / 60
        lines.append(
            f"| {job.script}{f' + {job.variant}' * bool(job.variant)} | {job.env_id} | "
            f"{f'`{job.flags}`' if job.flags else 'default'} | {len(group)} | {spread(finals)} | "
            f"{interval} | {finals.min():,.0f} | "
            f"{spread(np.array([run.evaluated for run in group]))} | "
            f"{steps_to_mark(group)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def steps_to_mark(group: list[Run]) -> str:
    """The median, if more than half have reached it, and how many have."""
    steps = np.array([run.steps_to_mark for run in group])
    median = np.median(steps)
    return f"{f'{median:,.0f}' if np.isfinite(median) else '–'} ({np.isfinite(steps).sum()})"


def trials(runs: dict[suites.Experiment, list[Run]]) -> str:
    """Of the runs that chose the defaults there are only the finals."""
    lines = ["| script | environment | flags | seeds | last 100 episodes | worst | evaluation |",
             "|---|---|---|" + "---:|" * 4]
    for job, group in runs.items():
        if not job.variant.startswith("first_series"):  # whose flags are not today's
            finals = np.array([run.final for run in group])
            lines.append(
                f"| {job.script}{f' + {job.variant}' * bool(job.variant)} | {job.env_id} | "
                f"{f'`{job.flags}`' if job.flags else 'default'} | {len(group)} | "
                f"{spread(finals)} | {finals.min():,.0f} | "
                f"{spread(np.array([run.evaluated for run in group]))} |")
    return "\n".join(lines) + "\n"


PUBLISHED = {  # at 1M steps, environment version and statistic as SOURCES says
    ("HalfCheetah-v4", "REINFORCE"): ["526 ± 182 T"],
    ("HalfCheetah-v4", "A2C"): ["1,936 ± 1,160 T"],
    ("HalfCheetah-v4", "PPO"): ["5,784 ± 1,244 T", "1,693 ± 38 N", "1,443 ± 46 C"],
    ("HalfCheetah-v4", "TRPO"): ["4,527 ± 603 T", "1,803 (s.e. 46) P", "1,734 ± 445 N"],
    ("Hopper-v4", "REINFORCE"): ["420 V", "390 ± 84 T"],
    ("Hopper-v4", "A2C"): ["1,253 ± 458 T"],
    ("Hopper-v4", "PPO"): ["2,761 ± 927 N", "2,609 ± 701 T", "2,513 (2,391 to 2,632) E",
                           "2,383 ± 272 C"],
    ("Hopper-v4", "TRPO"): ["3,372 (s.e. 215) P", "2,466 E (TRPO+)", "2,348 ± 1,506 N",
                             "2,046 ± 1,038 T", "2,043 E"],
    ("Walker2d-v4", "REINFORCE"): ["391 ± 45 T"], ("Walker2d-v4", "A2C"): ["1,219 ± 715 T"],
    ("Walker2d-v4", "PPO"): ["3,871 ± 966 N", "3,589 ± 757 T", "3,292 (3,157 to 3,426) E",
                             "2,288 ± 572 C"],
    ("Walker2d-v4", "TRPO"): ["4,502 (s.e. 234) P", "3,827 ± 783 T", "3,391 ± 737 N",
                              "3,050 E (TRPO+)", "2,791 E"],
    ("Humanoid-v4", "PPO"): ["806 (785 to 827) E", "787 ± 194 T", "716 ± 49 C"],
    ("Humanoid-v4", "TRPO"): ["1,030 E (TRPO+)", "810 ± 126 T", "586 E"],
    ("InvertedPendulum-v4", "PPO"): ["1,000 ± 0 N", "1,000 ± 0 T (-v2)", "963 ± 22 C"],
    ("InvertedPendulum-v4", "TRPO"): ["1,000 ± 0 N", "1,000 ± 0 T (-v2)"],
    ("Pusher-v5", "PPO"): ["-40 ± 7 C (-v4)"],
}
SOURCES = """
At 1M steps. T: [Tianshou](https://github.com/thu-ml/tianshou/tree/v0.4.11/examples/mujoco) 2021,
-v3, 10 seeds, best point of the mean evaluation curve (up to 1.01M), sampled actions; its ± is the
standard deviation with n, not n − 1, in the denominator. P:
[sb3-contrib](https://sb3-contrib.readthedocs.io/en/master/modules/trpo.html), -v3, 3 seeds, last
evaluation; s.e. is the standard error. N:
[nnabla-rl](https://github.com/sony/nnabla-rl/tree/master/reproductions/algorithms/mujoco), -v2, 3
seeds, best of the evaluations, ± as printed. E:
[Engstrom et al. 2020](https://arxiv.org/abs/2005.12729), -v2, 80 agents or more, 95 % interval; its
TRPO is without PPO's optimisations, TRPO+ with them. V:
[Spinning Up's VPG](https://spinningup.openai.com/en/latest/spinningup/bench.html), -v3, 10 seeds.
C: [CleanRL](https://docs.cleanrl.dev/rl-algorithms/ppo/), -v4, 3 seeds, last 100 training episodes,
the only one with our version and our statistic.
"""


LIBRARIES = {  # algorithm → its peers in run.py's suite: the script's name there, the library
    "REINFORCE": {"tianshou_reinforce": "Tianshou"}, "A2C": {"sb3_a2c": "SB3"},
    "PPO": {"sb3_ppo": "SB3", "tianshou_ppo": "Tianshou", "cleanrl_ppo": "CleanRL"},
    "TRPO": {"sb3_trpo": "sb3-contrib"},
}
PEER_COLOURS = {"SB3": "black", "sb3-contrib": "black", "Tianshou": "#CC79A7", "CleanRL": "#0072B2"}


def published(runs: dict[suites.Experiment, list[Run]]) -> str:
    """Ours on MuJoCo beside peers measured here and the published numbers."""
    lines = ["| environment | algorithm | ours: last 100 episodes (evaluation; seeds) | peers, "
             "measured here | published |", "|---|---|---:|---:|---|"]
    for job in suites.compare():
        theirs, group = PUBLISHED.get((job.env_id, NAMES[job.script])), runs.get(job)
        if theirs and group:
            peers = {library: runs.get(suites.Experiment(name, job.env_id), [])
                     for name, library in LIBRARIES[NAMES[job.script]].items()}
            measured = "; ".join(f"{library} {finals_of(found)}"
                                 for library, found in peers.items() if found)
            lines.append(f"| {job.env_id} | {NAMES[job.script]} | {finals_of(group)} | {measured} "
                         f"| {'; '.join(theirs)} |")
    return "\n".join(lines) + "\n\n" + textwrap.fill(
        SOURCES.strip(), 120, break_on_hyphens=False) + "\n"


def against_peers(runs: dict[suites.Experiment, list[Run]]) -> str:
    """Ours and each peer measured here, and by both statistics p of Welch's t-test."""
    from scipy import stats

    lines = ["| environment | peer | theirs: last 100 episodes (evaluation; seeds) | lowest, "
             "highest run | ours | p, last 100 episodes | p, evaluation |",
             "|---|---|" + "---:|" * 5]
    for job in suites.compare():
        for peer, library in LIBRARIES[NAMES[job.script]].items():
            theirs, ours = (runs.get(x, []) for x in (suites.Experiment(peer, job.env_id), job))
            if len(theirs) > 1 and len(ours) > 1:
                p = [stats.ttest_ind([getattr(run, name) for run in theirs],
                                     [getattr(run, name) for run in ours], equal_var=False).pvalue
                     for name in ("final", "evaluated")]
                finals = [run.final for run in theirs]
                lines.append(
                    f"| {job.env_id} | {library}'s {NAMES[job.script]} | {finals_of(theirs)} | "
                    f"{min(finals):,.0f}, {max(finals):,.0f} | {finals_of(ours)} | "
                    + " | ".join("" if np.isnan(x) else f"{x:.3f}" if x >= 0.001 else "< 0.001"
                                 for x in p) + " |")
    return "\n".join(lines) + "\n"


def untuned(runs: dict[suites.Experiment, list[Run]]) -> str:
    """The defaults on tasks that did not choose them, and by how much a run ended below its best
    mean of 100 episodes."""
    lines = ["| environment | algorithm | last 100 episodes (evaluation; seeds) | worst | furthest "
             "below its best | published |", "|---|---|" + "---:|" * 3 + "---|"]
    for job in suites.untuned():
        if group := runs.get(job):
            fall = max(run.best - run.final for run in group)
            theirs = PUBLISHED.get((job.env_id, NAMES[job.script]), [])
            lines.append(f"| {job.env_id} | {NAMES[job.script]} | {finals_of(group)} | "
                         f"{min(run.final for run in group):,.0f} | {fall:,.0f} | "
                         f"{'; '.join(theirs)} |")
    return "\n".join(lines) + "\n"


def finals_of(group: list[Run]) -> str:
    """Both statistics and the number of runs; CleanRL's have no evaluation."""
    evaluation = np.mean([run.evaluated for run in group])
    text = f"{evaluation:,.0f}; " if np.isfinite(evaluation) else ""
    return f"{spread(np.array([run.final for run in group]))} ({text}{len(group)})"


PPO_M, TRPO_M = suites.PPO_M, "TRPO, seven and gradient clipping off"
AAI = (("PPO", "TRPO"), (PPO_M, TRPO_M))  # pairs that differ in the algorithm
ACLI = (("PPO", PPO_M), ("TRPO", TRPO_M))  # and in the optimisations
ENGSTROM_AGENTS = {  # title in our ablation: its name there, Hopper-, Walker2d-, Humanoid-v2
    "PPO": "PPO 2,513, 3,292, 806", PPO_M: "PPO-M 2,142, 2,735, 674",
    "no ratio clipping": "PPO without clipping 2,371, 2,867, 831",
    "TRPO": "TRPO+ 2,466, 3,050, 1,030", TRPO_M: "TRPO 2,043, 2,791, 586",
}


def starred(runs: dict[suites.Experiment, list[Run]], job: suites.Experiment) -> bool:
    """Whether Welch's t-test tells an experiment's runs from those of its script's defaults."""
    from scipy import stats

    groups = [[run.final for run in runs.get(which, [])]
              for which in (job, suites.experiment(job.script, job.env_id))]
    return min(map(len, groups)) > 1 and bool(
        stats.ttest_ind(*groups, equal_var=False).pvalue < 0.05)


def engstrom(runs: dict[suites.Experiment, list[Run]]) -> str:
    """The ablation, one row per change, with the means of Engstrom et al. 2020 beside it; marked
    where Welch's t-test tells the runs from those of the unchanged algorithm. Below it, as there,
    the larger difference of two pairs of means: AAI, average algorithmic improvement, and ACLI,
    average code-level improvement."""
    cells, means = defaultdict(dict), {}
    for job, title in ablation_titles().items():
        if job in runs:
            finals = np.array([run.final for run in runs[job]])
            mark = " *" if starred(runs, job) else ""
            cells[title][job.env_id] = f"{spread(finals)} ({len(finals)}){mark}"
            means[title, job.env_id] = finals.mean()
    tasks = [env_id for env_id in ("Hopper-v4", "Walker2d-v4", "Humanoid-v4")
             if any(env_id in row for row in cells.values())]
    lines = ["| | " + " | ".join(tasks) + " | Engstrom et al. 2020, Hopper-, Walker2d-, "
             "Humanoid-v2 |", "|---|" + "---:|" * len(tasks) + "---|"]
    for title, row in cells.items():
        ours = " | ".join(row.get(env_id, "–") for env_id in tasks)
        lines.append(f"| {title} | {ours} | {ENGSTROM_AGENTS.get(title, '')} |")
    summaries = (("AAI: the algorithm", AAI, "99, 242, 224"),
                 ("ACLI: the optimisations", ACLI, "421, 557, 444"))
    for title, pairs, theirs in summaries if tasks else ():
        ours = [np.max([abs(means.get((x, env_id), np.nan) - means.get((y, env_id), np.nan))
                        for x, y in pairs]) for env_id in tasks]
        row = " | ".join(f"{x:,.0f}" if np.isfinite(x) else "–" for x in ours)
        lines.append(f"| {title} | {row} | {theirs} |")
    return "\n".join(lines) + "\n"


DISTRIBUTIONS = {"": "Gaussian, clipped", "annealed_std": "Gaussian, clipped, σ annealed",
                 "squashed_gaussian": "Gaussian, squashed", "beta": "Beta"}


def thirds(runs: dict[suites.Experiment, list[Run]]) -> str:
    """PPO's metrics in the first, second and last third of a run, with its learning rate falling to
    0 (the default) and constant: means over the rows, then over the runs."""
    columns = {"clip fraction": "clipfrac", "KL": "approx_kl", "entropy": "entropy",
               "policy loss": "policy_loss", "explained variance": "explained_variance"}
    lines = [f"| environment | learning rate | runs | {' | '.join(columns)} |",
             "|---|---|---:|" + "---|" * len(columns)]
    for env_id, (rate, anneal_lr) in itertools.product(
            ("Hopper-v4", "Walker2d-v4"), (("falling", True), ("constant", False))):
        job = suites.experiment("ppo_continuous", env_id, anneal_lr=anneal_lr)
        if job not in runs:
            continue
        cells = []
        for column in columns.values():
            means = [[part.mean() for part in np.array_split(run.columns[column], 3)]
                     for run in runs[job]]
            cells.append(", ".join(f"{x:#.2g}" for x in np.mean(means, 0)))
        lines.append(f"| {env_id} | {rate} | {len(runs[job])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def distributions(runs: dict[suites.Experiment, list[Run]]) -> str:
    """One row per distribution; last 100 training episodes and, in brackets, the evaluation."""
    lines = ["| | " + " | ".join(suites.MUJOCO) + " |", "|---|---:|---:|---:|"]
    jobs = {(job.variant, job.env_id): job for job in suites.actions()}
    for variant, title in DISTRIBUTIONS.items():
        groups = [runs.get(jobs[variant, env_id]) for env_id in suites.MUJOCO]
        if any(groups):
            cells = " | ".join(finals_of(group) if group else "–" for group in groups)
            lines.append(f"| {title} | {cells} |")
    return "\n".join(lines) + "\n"


def hyperparameters() -> str:
    """The five scripts' defaults side by side, of the flags that act on the training."""
    scripts = ("reinforce", "a2c", "ppo_discrete", "ppo_continuous", "trpo")
    settings = {script: suites.settings_of(suites.Experiment(script, "")) for script in scripts}
    words = {True: "yes", False: "no", None: "off"}
    lines = ["| flag | " + " | ".join(f"`{script}.py`" for script in scripts) + " |",
             "|---|" + "---:|" * len(scripts)]
    for name in dict.fromkeys(itertools.chain(*settings.values())):
        if name != "torch_deterministic" and not name.startswith("eval"):
            found = [settings[script].get(name, "") for script in scripts]
            cells = [words[x] if x is None or isinstance(x, bool) else
                     f"{x:,}" if isinstance(x, int) else f"{x}" for x in found]
            lines.append(f"| `--{name.replace('_', '-')}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


SOGANG = {  # task → the lecture's scores of PPO and of random actions
    "CartPole-v1": ("400+", "20"), "LunarLander-v3": ("200+", "−150"),
    "BipedalWalker-v3": ("300+", "−100"), "Pendulum-v1": ("−200", "−1500"),
    "HalfCheetah-v4": ("2000+", "−300"),
}


def sogang(runs: dict[suites.Experiment, list[Run]]) -> str:
    """PPO beside random actions, with what exp09 of the lecture tracks: the coefficient of
    variation (standard deviation over runs / |mean|), the steps to the mark, the minutes."""
    lines = ["| task | steps | PPO (evaluation; seeds) | variation | steps to the mark (runs) | "
             "minutes | random | the lecture: PPO, random |", "|---|" + "---:|" * 7]
    nobodies = {job.env_id: job for job in suites.sogang() if job.script == "random"}
    for job in suites.sogang():
        nobody = nobodies[job.env_id]
        if job in runs and nobody in runs and job != nobody:
            group = runs[job]
            finals = np.array([run.final for run in group])
            variation = "–"
            if len(group) > 1:
                variation = f"{100 * finals.std(ddof=1) / abs(finals.mean()):.0f} %"
            taken, seconds = (np.median([run.columns[name][-1] for run in group])
                              for name in ("global_step", "seconds"))
            lines.append(
                f"| {job.env_id} | {taken:,.0f} | {finals_of(group)} | {variation} | "
                f"{MARKS[job.env_id]}: {steps_to_mark(group)} | {seconds / 60:.1f} | "
                f"{spread(np.array([run.final for run in runs[nobody]]))} | "
                f"{', '.join(SOGANG[job.env_id])} |")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------------------
def save(figure: plt.Figure, name: str) -> None:
    (HERE / "figures").mkdir(exist_ok=True)
    figure.savefig(HERE / "figures" / f"{name}.png")
    figure.savefig(HERE / "figures" / f"{name}.pdf", metadata={"CreationDate": None})  # same bytes
    plt.close(figure)


def curve(axis: plt.Axes, group: list[Run], column: str, label: str | None, colour: str) -> None:
    """Mean over seeds at common numbers of steps, and its 95 % interval: a percentile bootstrap,
    which does not leave the range of the runs, as Student's t would above CartPole's 500. Of five
    runs or fewer it is too narrow."""
    ends = [run.columns["global_step"][-1] for run in group]
    grid = np.linspace(0, min(ends), 201)[1:]
    values = []
    for run in group:
        seen = np.isfinite(run.columns[column])
        steps = run.columns["global_step"][seen]
        values.append(np.interp(grid, steps, run.columns[column][seen], left=np.nan))
    values = np.array(values)
    there = np.isfinite(values).all(0)
    grid, values = grid[there], values[:, there]
    axis.plot(grid, values.mean(0), label=label, color=colour)
    if len(group) > 2:
        draws = np.random.default_rng(0).integers(len(group), size=(RESAMPLES, len(group)))
        low, high = np.percentile(values[draws].mean(1), (2.5, 97.5), axis=0)
        axis.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)


def compare(runs: dict[suites.Experiment, list[Run]]) -> None:
    """Learning curves of all algorithms, one panel per task."""
    tasks = [env_id for env_id in (*suites.MUJOCO, *suites.CLASSIC)
             if any(job.env_id == env_id for job in runs)]
    rows = -(-len(tasks) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(18, 5 * rows), squeeze=False)
    for axis, env_id in zip(axes.flat, tasks):
        for job, group in runs.items():
            if job.env_id == env_id:
                curve(axis, group, "return_100", NAMES[job.script], COLOURS[job.script])
        axis.set(title=env_id, xlabel="environment steps")
        axis.xaxis.set_major_formatter(thousands)
    for axis in axes.flat[len(tasks):]:
        axis.axis("off")
    for row in axes:
        row[0].set_ylabel("return, last 100 episodes")
    entries = {text: handle for axis in axes.flat
               for handle, text in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=len(entries),
                  bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    save(figure, "compare")


def bars(runs: dict[suites.Experiment, list[Run]], titles: dict[suites.Experiment, str],
         name: str) -> None:
    """A panel per task. A bar is an experiment's mean, a dot a run; a dashed line goes on with the
    mean of a script's defaults; a star is where Welch's t-test tells the runs from those."""
    tasks = list(dict.fromkeys(job.env_id for job in titles if job in runs))
    order = list(dict.fromkeys(titles.values()))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 + 5 * len(tasks), 2 + 0.5 * len(order)),
                                sharey=True, squeeze=False)
    for axis, env_id in zip(axes[0], tasks):
        for job, group in runs.items():
            if job.env_id != env_id:
                continue
            finals, y = np.array([run.final for run in group]), order.index(titles[job])
            axis.barh(y, finals.mean(), color=COLOURS[job.script], alpha=0.6)
            axis.plot(finals, [y] * len(finals), "o", color="black", markersize=6, alpha=0.5)
            if job == suites.experiment(job.script, env_id):
                axis.axvline(finals.mean(), color=COLOURS[job.script], linestyle="--", zorder=0)
            elif starred(runs, job):
                axis.annotate("*", (finals.max(), y), (8, -4), textcoords="offset points",
                              va="center", fontsize=20)
        axis.set(title=env_id, xlabel="return, last 100 episodes")
        axis.locator_params(axis="x", nbins=5)
    axes[0][0].set_yticks(range(len(order)), order)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    save(figure, name)


def ablation_titles() -> dict[suites.Experiment, str]:
    titles = {}
    for env_id in dict.fromkeys(job.env_id for job in suites.ablation()):
        for title, changes in suites.ABLATIONS.items():
            titles[suites.experiment("ppo_continuous", env_id, **changes)] = title
        titles[suites.experiment("ppo_continuous", env_id, variant="time_limits_terminate")] = (
            "time limits taken for ends")
        titles[suites.experiment("trpo", env_id)] = "TRPO"
        titles[suites.experiment("trpo", env_id, **suites.BARE)] = TRPO_M
    return titles


def ablation(runs: dict[suites.Experiment, list[Run]]) -> None:
    """Humanoid-v4, of whose rows there are four, is in the table alone."""
    drawn = {job: title for job, title in ablation_titles().items() if job.env_id != "Humanoid-v4"}
    if runs.keys() & drawn.keys():
        bars(runs, drawn, "ablation")
        annealing(runs)


def annealing(runs: dict[suites.Experiment, list[Run]]) -> None:
    """What the falling learning rate does in the course of a run: a row per task."""
    panels = {"approx_kl": "KL(π_old ‖ π)", "clipfrac": "clip fraction", "entropy": "entropy",
              "explained_variance": "explained variance", "return_100": "return"}
    tasks = ("Hopper-v4", "Walker2d-v4")
    figure, axes = plt.subplots(2, len(panels), figsize=(4.6 * len(panels), 8.5), sharex=True)
    for row, env_id in zip(axes, tasks):
        for axis, (column, title) in zip(row, panels.items()):
            for anneal_lr, colour in ((True, COLOURS["ppo_continuous"]), (False, "#000000")):
                job = suites.experiment("ppo_continuous", env_id, anneal_lr=anneal_lr)
                if job in runs:
                    label = "falls to 0" if anneal_lr else "constant"
                    curve(axis, runs[job], column, f"{label} ({len(runs[job])} runs)", colour)
            axis.xaxis.set_major_formatter(thousands)
            if column == "explained_variance":
                axis.set_ylim(0.7, 1)
            axis.set_title(title)
        row[0].set_ylabel(env_id)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps")
    axes[0][2].legend(title="learning rate", fontsize=14)
    figure.tight_layout()
    save(figure, "annealing")


def actions(runs: dict[suites.Experiment, list[Run]]) -> None:
    bars(runs, {job: DISTRIBUTIONS[job.variant] for job in runs}, "actions")


def sensitivity(runs: dict[suites.Experiment, list[Run]]) -> None:
    """Heat maps of learning rate × clip range, one per batch size; and returns against λ and
    against the size of a minibatch."""
    grids, default = suites.sensitivity_grid(), suites.experiment(**suites.COARSE)
    sweeps = {"λ of GAE": suites.lambda_sweep(),
              "transitions per minibatch": suites.minibatch_sweep()}
    figure, axes = plt.subplot_mosaic("aabbcc;dddeee", figsize=(16, 10))
    axes = list(axes.values())
    finals = {job: np.array([run.final for run in group]) for job, group in runs.items()}
    values = {job: group.mean() for job, group in finals.items()}
    coloured = [values[job] for cells in grids.values() for job in cells.values() if job in values]
    low, high = min(coloured, default=0.0), max(coloured, default=0.0)
    for axis, (batch_size, cells) in zip(axes, grids.items()):
        rates, clips = (sorted({key[i] for key in cells}) for i in (0, 1))
        heat = np.array([[values.get(cells[rate, clip], np.nan) for rate in rates]
                         for clip in clips])
        axis.imshow(heat, cmap="cividis", vmin=low, vmax=high, origin="lower")
        for (row, column), value in np.ndenumerate(heat):
            if np.isfinite(value):
                text = spread(finals[cells[rates[column], clips[row]]]).replace(" ", "\n", 1)
                axis.text(column, row, text, ha="center", va="center",
                          color="black" if value > (low + high) / 2 else "white")
        axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axis.set_yticks(range(len(clips)), [f"{clip:g}" for clip in clips])
        axis.grid(False)
        axis.set(title=f"{batch_size:,} transitions per rollout", xlabel="learning rate",
                 ylabel="clip range ε")
        for (rate, clip), job in cells.items():
            if job == default:
                axis.add_patch(plt.Rectangle((rates.index(rate) - 0.5, clips.index(clip) - 0.5), 1,
                                             1, fill=False, edgecolor="white", linewidth=4))
    for axis, (title, sweep) in zip(axes[len(grids):], sweeps.items()):
        there = {i: job for i, job in enumerate(sweep.values()) if job in runs}
        for i, job in there.items():
            axis.plot(i + np.linspace(-0.1, 0.1, len(finals[job])), np.sort(finals[job]), "o",
                      color="black", alpha=0.5)
        axis.plot(list(there), [values[job] for job in there.values()],
                  color=COLOURS["ppo_continuous"])
        axis.axvline(list(sweep.values()).index(default), color="grey", linestyle=":",
                     label="default")
        axis.set_xticks(range(len(sweep)), [f"{value:,}" for value in sweep])
        axis.set(xlabel=title, ylabel="return, last 100 episodes")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.legend()
    figure.suptitle("PPO on Hopper-v4 after 300,000 steps: return of the last 100 episodes\n"
                    "mean ± standard deviation (frame: the default); below, runs and their mean",
                    fontsize=18)
    figure.tight_layout()
    save(figure, "sensitivity")


def peers(runs: dict[suites.Experiment, list[Run]]) -> None:
    """Learning curves of ours and of the peers measured here: a row per algorithm, a panel per
    task."""
    ours = {NAMES[job.script]: job.script for job in suites.compare() if job.env_id in
            suites.MUJOCO}
    rows = [name for name, libraries in LIBRARIES.items()
            if any(job.script in libraries for job in runs)]
    figure, axes = plt.subplots(len(rows), 3, figsize=(18, 4.5 * len(rows)), squeeze=False)
    for (i, name), (j, env_id) in itertools.product(enumerate(rows), enumerate(suites.MUJOCO)):
        axis = axes[i][j]
        lines = [(suites.Experiment(script, env_id), library, PEER_COLOURS[library])
                 for script, library in LIBRARIES[name].items()]
        default = suites.experiment(ours[name], env_id, total_timesteps=1_000_000)
        for job, label, colour in ((default, "ours", COLOURS[ours[name]]), *lines):
            if job in runs:
                curve(axis, runs[job], "return_100", f"{label} ({len(runs[job])} runs)", colour)
        axis.set(title=f"{name}, {env_id}", xlabel="environment steps")
        axis.xaxis.set_major_formatter(thousands)
        if axis.lines:
            axis.legend(fontsize=14)
    for row in axes:
        row[0].set_ylabel("return, last 100 episodes")
    figure.tight_layout()
    save(figure, "peers")


def discount(runs: dict[suites.Experiment, list[Run]]) -> None:
    """The return against γ, and how long episodes last: a dot per run, a dash at their mean."""
    panels = {"return, last 100 episodes": lambda run: run.final,
              "steps per episode, last tenth": lambda run: run.length}
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    sweep = {gamma: runs[job] for gamma, job in suites.discount_sweep().items() if job in runs}
    for axis, (title, statistic) in zip(axes, panels.items()):
        points = [[statistic(run) for run in group] for group in sweep.values()]
        for x, column in enumerate(points):
            axis.plot([x] * len(column), column, "o", color="black", alpha=0.5)
            axis.plot([x - 0.2, x + 0.2], [np.mean(column)] * 2, color=COLOURS["ppo_continuous"])
        axis.set_xticks(range(len(sweep)), [f"{gamma:g}" for gamma in sweep])
        axis.set(title="PPO, Hopper-v4", xlabel="γ", ylabel=title)
    figure.tight_layout()
    save(figure, "discount")


def health(runs: dict[suites.Experiment, list[Run]]) -> None:
    """KL, clip fraction and return over training at three learning rates, a line per run."""
    panels = {"approx_kl": "KL(π_old ‖ π)", "clipfrac": "clip fraction",
              "return_100": "return, last 100 episodes"}
    figure, axes = plt.subplots(1, 3, figsize=(18, 5))
    looks = zip(suites.health(), ("healthy", "too small", "collapsing"),
                (COLOURS["ppo_continuous"], "#0072B2", "#000000"))
    for job, title, colour in looks:
        if job not in runs:
            continue
        for axis, (column, text) in zip(axes, panels.items()):
            for run in runs[job]:
                first = run is runs[job][0]
                label = f"{title}: {run.settings['learning_rate']:g}" if first else None
                curve(axis, [run], column, label, colour)
            axis.set(title=text, xlabel="environment steps")
            axis.xaxis.set_major_formatter(thousands)
    axes[0].set_yscale("log")
    axes[2].legend(title="learning rate")
    figure.tight_layout()
    save(figure, "health")


def clip() -> None:
    """PPO's objective against the ratio, for a good and a bad action: the script's policy_loss."""
    import torch

    import ppo_continuous

    ratio, epsilon = torch.linspace(0, 2, 401), 0.2
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    for axis, advantage in zip(axes, (1.0, -1.0)):
        zero, one = torch.zeros(1), torch.ones(1)
        clipped = [-float(ppo_continuous.policy_loss(r[None].log(), zero, advantage * one, epsilon))
                   for r in ratio]
        axis.plot(ratio, ratio * advantage, "--", color="grey", label="ρÂ, not clipped")
        axis.plot(ratio, clipped, color=COLOURS["ppo_continuous"], label="PPO's objective")
        axis.plot([1], [advantage], "o", color="black", markersize=11, label="π = π_old")
        for edge in (1 - epsilon, 1 + epsilon):
            axis.axvline(edge, color="grey", linewidth=1)
        axis.set_xticks([0, 1 - epsilon, 1, 1 + epsilon, 2], ["0", "1−ε", "1", "1+ε", "2"])
        axis.set(title=("Â = +1: make it likelier" if advantage > 0 else "Â = −1: make it rarer")
                 + ", up to a point", xlabel="ratio ρ = π(a|s) / π_old(a|s)")
    axes[0].set_ylabel("objective (to be maximised)")
    axes[1].legend(loc="upper right", fontsize=13, handlelength=1.5)
    figure.tight_layout()
    save(figure, "clip")


def speed(measured: dict[str, dict[str, list[dict]]]) -> None:
    """Steps per second, a panel per race. A bar is the median of the rounds, the line on it reaches
    from the slowest to the fastest."""
    colours = {"sbx": "#CC79A7", "eager": "#7FB8D9", "compile": "#0072B2", "cuda": "#000000"}
    found = [race for race in races.RACES if race in measured]
    figure, axes = plt.subplots(-(-len(found) // 2), 2, figsize=(15, 3 * -(-len(found) // 2)),
                                squeeze=False)
    for axis, race in zip(axes.flat, found):
        script, env_id, num_envs, num_steps, _ = races.RACES[race]
        names = [name for name in measured[race] if name != "floor"]  # of which nothing learns
        for y, name in enumerate(names):
            speeds = [row["steps_per_second"] for row in measured[race][name]]
            middle = np.median(speeds)
            axis.barh(y, middle, color=colours.get(name, "#555555"), alpha=0.7,
                      xerr=[[middle - min(speeds)], [max(speeds) - middle]], capsize=4)
        axis.set_yticks(range(len(names)),
                        [races.title_of(race, name).replace("`", "") for name in names])
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.xaxis.set_major_formatter(thousands)
        axis.set(title=f"{NAMES[script]}, {env_id}, {num_envs} × {num_steps}",
                 xlabel="steps per second")
    for axis in axes.flat[len(found):]:
        axis.axis("off")
    figure.tight_layout()
    save(figure, "speed")


FIGURES = {f.__name__: f for f in (compare, ablation, actions, sensitivity, discount, health,
                                   peers)}
TABLES = {  # of a suite, besides the general one of those with a figure
    "compare": (published, classic), "per_task": (classic,), "ablation": (engstrom, thirds),
    "actions": (distributions,), "sensitivity": (), "discount": (), "health": (),
    "untuned": (untuned,), "sogang": (sogang,), "peers": (against_peers,)}
PARTS = ("clip", "speed", *FIGURES)


@dataclass
class Options:
    parts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(
        metavar="[PART|RUN ...]", help=f"some of {', '.join(PARTS)} (none: all that there are "
        "results for); or run directories, or folders of them")] = ()
    results: Path = HERE / "results"  # where the tables of runs are; not for run directories
    out: Path = Path("report.png")  # the figure of run directories


def report(parts: tuple[str, ...], results: Path) -> None:
    """The figures of these parts (none: all). Where one of them shows runs, also the tables of all
    suites that have runs in results/, of the trials and of the hyperparameters. Nothing is written
    before all tables are made."""
    timed, tried = results / "speed.csv", results / "trials.csv.gz"
    texts, shown = {}, {}  # table → its text; suite → the runs of its figure
    for part in set(parts) - {"clip"}:
        file = timed.name if part == "speed" else f"{part}.csv.gz"
        if not (results / file).exists():
            raise own_runs.UserError(f"--results {results}: there is no {file}")
    of_runs = not parts or bool(set(parts) - {"clip", "speed"})
    everything = load(*suites.tables(results)) if of_runs else {}
    measured = races.read(timed) if timed.exists() and (not parts or "speed" in parts) else {}
    no_speed = "speed" in parts and not measured
    no_runs = of_runs and not everything and not measured
    if no_speed or no_runs:
        raise own_runs.UserError(f"--results {results}: " + (
            f"{timed.name} has no rows" if no_speed else "no run has today's settings"))
    for name, own in TABLES.items() if of_runs else ():
        wanted = suites.experiments(name) if (results / f"{name}.csv.gz").exists() else []
        runs = {job: everything[job] for job in wanted if job in everything}
        if name in parts and not runs:
            raise own_runs.UserError(f"{name}.csv.gz: no run has today's settings")
        if wanted:
            kept = "" if runs else "; nothing is made of it"
            print(f"{name}: {len(runs)} of {len(wanted)} experiments{kept}")
        if runs:
            texts |= {make.__name__: make(everything) for make in own}
            shown[name] = everything if name == "peers" else runs
        if runs and name in (*FIGURES, "per_task"):
            texts[name] = table(runs)
    if of_runs:
        texts["hyperparameters"] = hyperparameters()
    if of_runs and tried.exists():
        texts["trials"] = trials(load(tried))
    if measured:
        texts["speed"] = races.table(measured)
    for name, text in texts.items():
        if text.count("\n|") > 1:  # it has a row
            (HERE / "tables").mkdir(exist_ok=True)
            (HERE / "tables" / f"{name}.md").write_text(text, "utf-8")
    for name in (name for name in FIGURES if name in shown and (not parts or name in parts)):
        FIGURES[name](shown[name])
    if measured:
        speed(measured)
    if not parts or "clip" in parts:
        clip()


def dispatch(options: Options) -> None:
    """The runs in results/, or one's own; UserError for what is neither or both."""
    own = [name for name in options.parts if name not in PARTS]
    for name in own:
        if not own_runs.paths_of(name):
            raise own_runs.UserError(f"{name!r}: neither a part of the report ({', '.join(PARTS)}) "
                                     "nor a run directory, a folder of them or a pattern for them")
    if own and len(own) < len(options.parts):
        raise own_runs.UserError(f"{' '.join(options.parts)}: give parts of the report or run "
                                 "directories, not both (./NAME is a directory)")
    if own:
        own_runs.report(own, options.out)
    else:
        report(options.parts, options.results)


def main() -> None:
    try:
        dispatch(tyro.cli(Options, description=__doc__.splitlines()[0]))
    except (own_runs.UserError, ImportError) as error:
        text = str(error)
        if isinstance(error, ImportError):
            text = f"this needs {error.name or error}: pip install -r benchmarks/requirements.txt"
        print("report.py: " + "".join(c if c.isprintable() else " " for c in text),
              file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
