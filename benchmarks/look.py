"""What all figures have in common: colours, type sizes, how numbers of steps are written."""
import matplotlib
import matplotlib.pyplot as plt

COLOURS = {  # Okabe & Ito 2008: told apart by the colour-blind, too, and in grey
    "reinforce": "#E69F00", "a2c": "#56B4E9", "ppo_discrete": "#009E73",
    "ppo_continuous": "#009E73", "trpo": "#D55E00"}
PALETTE = (  # all colours of theirs but yellow, neighbours as different as can be
    "#009E73", "#D55E00", "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#000000")

matplotlib.use("Agg")
plt.rcParams.update({"font.size": 15, "axes.spines.top": False, "axes.spines.right": False,
                     "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2.5,
                     "legend.frameon": False, "savefig.bbox": "tight", "savefig.dpi": 110})


def thousands(value: float, _=None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
