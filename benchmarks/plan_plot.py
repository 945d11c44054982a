"""Draws what `plan_gpu.py` measured: predicted speed-up against measured, every K at every point.

    python benchmarks/plan_plot.py benchmarks/results/h200_plan.json --out docs/plan.svg

Needs matplotlib (requirements-plot.txt).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = {"2": "#0072b2", "4": "#d55e00", "8": "#009e73"}


def main() -> None:
    """Read the figures and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result = json.loads(given.figures.read_text(encoding="utf-8"))
    points = [p for p in result["parts"]["measured"]["points"] if "error" in p]
    told = result["parts"]["measured"]["summary"]
    figure, axes = plt.subplots(figsize=(6.4, 6.0))
    every = []
    for k in sorted({k for p in points for k in p["error"]}, key=int):
        x = [p["speed_up"][k] for p in points if k in p["error"]]
        y = [p["predicted_speed_up"][k] for p in points if k in p["error"]]
        axes.scatter(x, y, s=26, label=f"K = {k}", color=COLOURS.get(k), alpha=0.85, linewidths=0)
        every += x + y
    low, high = 0.9 * min(every), 1.1 * max(every)
    line = [low, high]
    axes.plot(line, line, color="0.4", linewidth=0.8)
    axes.fill_between(line, [0.9 * v for v in line], [1.1 * v for v in line], color="0.9", zorder=0,
                      label="within 10 %")  # fmt: skip
    axes.set(xlim=line, ylim=line, xscale="log", yscale="log", aspect="equal",
             xlabel="measured speed-up over plain decoding",
             ylabel="predicted from the probe")  # fmt: skip
    ticks = [v for v in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5) if low <= v <= high]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_title(
        f"{told['within_10_percent']} of {told['speed_ups']} speed-ups within 10 %; "
        f"{told['points']} pairs of acceptance and load", fontsize=10,
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(given.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
