"""Thin the progress.csv of finished runs into benchmarks/results/, and print their table.

    python benchmarks/collect.py runs/*          # thin and copy, then print
    python benchmarks/collect.py                 # print what is there

One file per run, <script>__<environment>__<flags>__seed<seed>.csv, with at most 200 rows: every n-th
and the last. Its first line is a JSON object: the flags that were not defaults, the returns of the
deterministic evaluation at the end, the versions, all flags. The table has, per script, environment and flags: the number of seeds; mean
± std over seeds of the mean return of the last 100 training episodes; its 95 % interval (Student's t
over seeds, from five seeds on); its worst seed; and mean ± std over seeds of the final evaluation.
"""
import csv
import importlib
import json
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
NOT_SETTINGS = {"env_id", "seed", "exp_name", "run_dir", "resume", "evaluate", "compile", "cuda",
                "track", "wandb_project_name", "wandb_entity", "capture_video"}


def thin(run_dir: Path) -> None:
    args = json.loads((run_dir / "args.json").read_text())
    script = args["algorithm"]
    sys.path.insert(0, str(ROOT))
    defaults = {f.name: f.default for f in fields(importlib.import_module(script).Args)}
    changed = {name: args[name] for name, default in defaults.items()
               if args[name] != default and name not in NOT_SETTINGS}
    flags = " ".join(f"--{'no-' * (value is False)}{name.replace('_', '-')}"
                     + ("" if isinstance(value, bool) else f" {value}")
                     for name, value in changed.items())
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    rows = list(csv.reader((run_dir / "progress.csv").open()))
    header, rows = rows[0], rows[1:]
    step = -(-len(rows) // 199)
    rows = rows[::-1][::step][::-1]  # counted from the end, so that the last row stays
    facts = {k: args[k] for k in ("device", "python", "torch", "gymnasium", "mujoco") if k in args}
    about = {"script": script, "env_id": args["env_id"], "seed": args["seed"], "flags": flags,
             "evaluation": [round(r, 1) for r in evaluation["returns"]], **facts,
             "args": {k: v for k, v in args.items() if k in defaults}}
    label = flags.replace("--", "").replace(" ", "_") or "default"
    path = RESULTS / f"{script}__{args['env_id']}__{label}__seed{args['seed']}.csv"
    with path.open("w", newline="") as file:
        file.write("# " + json.dumps(about) + "\n")
        csv.writer(file).writerows([header] + [[shorten(x) for x in row] for row in rows])


def shorten(cell: str) -> str:
    return f"{float(cell):.5g}" if "." in cell else cell


def table() -> None:
    groups = defaultdict(list)
    for path in sorted(RESULTS.glob("*__seed*.csv")):
        with path.open() as file:
            about = json.loads(file.readline()[2:])
            last = list(csv.DictReader(file))[-1]
        groups[about["script"], about["env_id"], about["flags"]].append(
            (float(last["return_100"]), np.mean(about["evaluation"]), int(last["global_step"])))
    print("| script | environment | steps | seeds | last 100 episodes | 95 % interval | worst seed | "
          "evaluation | flags |\n|---|---|---|---|---|---|---|---|---|")
    for (script, env_id, flags), runs in groups.items():
        returns, evaluations, steps = map(np.array, zip(*runs))
        spread, n = returns.std(ddof=1) if len(runs) > 1 else np.nan, len(runs)
        half = stats.t.ppf(0.975, n - 1) * spread / n**0.5
        interval = f"{returns.mean() - half:,.0f} to {returns.mean() + half:,.0f}" if n >= 5 else "–"
        print(f"| {script} | {env_id} | {steps[0]:,} | {len(runs)} | {returns.mean():,.0f} ± "
              f"{spread:,.0f} | {interval} | {returns.min():,.0f} | "
              f"{evaluations.mean():,.0f} ± {evaluations.std(ddof=1):,.0f} | `{flags or 'default'}` |")


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for run_dir in map(Path, sys.argv[1:]):
        thin(run_dir)
    table()
