"""Draws what `load.py` wrote, one result or several as `runs`: tokens a second over plain decoding,
by workload and concurrency, K fixed and chosen. Needs matplotlib alone (requirements-plot.txt).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COLOURS = ("#8ab6d6", "#e0a458", "#9a7fb8", "#7fb87f", "#c98a8a")
_OWN = "#c8102e"


def main() -> None:
    """Read the JSON, write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="what load.py wrote to --out")
    parser.add_argument("--out", type=Path, required=True, help="a .svg or .png file")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    runs = results.get("runs", [results])
    points = latest(runs)
    workloads = sorted({point["workload"] for point in points})
    plt.rcParams |= {"svg.hashsalt": "paceline", "font.size": 9, "axes.spines.top": False,
                     "axes.spines.right": False}  # fmt: skip
    figure, panels = plt.subplots(
        1, len(workloads), figsize=(3.7 * len(workloads), 3.6), squeeze=False, layout="constrained"
    )
    for panel, workload in zip(panels[0], workloads, strict=True):
        draw(panel, workload, [p for p in points if p["workload"] == workload])
    panels[0][0].set_ylabel("tokens a second, over plain decoding")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    device, settings = runs[-1]["machine"]["device"], runs[-1]["settings"]
    figure.suptitle(
        f"{device}, {settings['dtype']}, {settings['repeats']} repeats (dots)", fontsize=9
    )
    metadata = {"Date": None} if options.out.suffix == ".svg" else None
    figure.savefig(options.out, dpi=150, metadata=metadata)
    print(json.dumps({"written": str(options.out), "points": len(points)}))


def latest(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each point as the last run has it that measured it; by workload and load."""
    every = [point for run in runs for point in run["parts"].get("closed", {}).get("points", ())]
    found = {(point["workload"], point["concurrency"]): point for point in every}
    return [found[key] for key in sorted(found)]


def draw(panel: Any, workload: str, points: list[dict[str, Any]]) -> None:
    """One workload: lines through medians, a dot for each repeat's ratio to plain in the same."""
    kind, acceptance = workload.rsplit("-", 1)
    panel.set_title(f"{kind}, acceptance {acceptance}")
    places = list(range(len(points)))
    panel.set_xticks(places, [str(point["concurrency"]) for point in points])
    panel.set_xlabel("requests at once")
    panel.axhline(1.0, color="0.4", linewidth=1, linestyle="--")
    names = [name for name in points[0]["settings"] if name != "plain"]
    colours = dict(zip((n for n in names if n != "adaptive"), _COLOURS, strict=False))
    for name in names:
        own = name == "adaptive"
        style = {"color": _OWN if own else colours[name], "zorder": 3 if own else 2}
        plain = [point["settings"]["plain"] for point in points]
        mine = [point["settings"][name] for point in points]
        ratios = [a["tok_s"] / b["tok_s"] for a, b in zip(mine, plain, strict=True)]
        label = "chosen by the engine" if own else f"K = {name.removeprefix('k=')}"
        panel.plot(places, ratios, label=label, linewidth=2.2 if own else 1.4, **style)
        for place, a, b in zip(places, mine, plain, strict=True):
            each = [x / y for x, y in zip(a["tok_s_each"], b["tok_s_each"], strict=True)]
            panel.scatter([place] * len(each), each, s=14 if own else 8, **style)
        if own:
            for place, ratio, a in zip(places, ratios, mine, strict=True):
                panel.annotate(
                    f"{a['tok_s']:,.0f}", (place, ratio), textcoords="offset points",
                    xytext=(0, 7), ha="center", color=_OWN, fontsize=7.5,
                )  # fmt: skip
    panel.set_ylim(bottom=0)


if __name__ == "__main__":
    main()
