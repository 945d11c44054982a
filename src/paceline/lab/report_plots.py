"""A summary's figures as pictures: SVG by matplotlib in one fixed style.

Colours are names of the page's style, so that one picture serves light, dark and paper. A picture
of nothing is None.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from paceline import ConfigError
from paceline.errors import needs_extra
from paceline.lab.bench_result import Figures, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these and then renamed: the page says what they look like.
_INK, _QUIET, _LINE, _PAPER = "#010101", "#020202", "#030303", "#040404"
_SERIES = tuple(f"#0505{n:02x}" for n in range(1, 9))
_NAMES = {_INK: "--ink", _QUIET: "--quiet", _LINE: "--line", _PAPER: "--paper"} | {
    colour: f"--c{n}" for n, colour in enumerate(_SERIES, 1)
}
_WIDTH = 8.4  # inches; the page scales it
_ROW = 0.34
_LONGEST = 36  # characters of a name
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paceline",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _QUIET,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def matplotlib_or_error() -> Any:
    """matplotlib's modules. Raises ConfigError where it is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(f"paceline report {needs_extra(error.name, 'report')}") from error
    return matplotlib, Figure


def _draw(height: float, draw: Any, label: str, columns: int = 1) -> Markup:
    """Draw with `draw(axes …)` and return the SVG with the page's colours."""
    matplotlib, figure_class = matplotlib_or_error()
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_class(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(*axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var({name})")
    # The page's own letters; numbers of equal width.
    text = re.sub(r"(font: [\d.]+px)[^;\"]*", r"\1 system-ui, sans-serif", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return Markup(text)  # matplotlib has escaped what is inside


def _colours(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a mark for each; the mark tells them apart on paper."""
    return {
        name: (_SERIES[place % len(_SERIES)], _MARKS[place % len(_MARKS)])
        for place, name in enumerate(names)
    }


def _rows_height(rows: int) -> float:
    return 0.75 + _ROW * max(rows, 2)


def speedups(figures: Sequence[Figures], order: Sequence[str]) -> Markup | None:
    """Speed-up over the same engine's plain decoding with its interval: a row a contestant, a panel
    a load."""
    shown = [f for f in figures if f.speedup is not None and f.category is None]
    loads = list(dict.fromkeys(f.load.name for f in shown))[:4]
    names = [name for name in order if any(f.contestant == name for f in shown)]
    if not names:
        return None
    colours = _colours(order)
    most = max(1.0, *(f.speedup.high or f.speedup.value for f in shown if f.speedup is not None))

    def draw(*panels: Axes) -> None:
        for axes, load in zip(panels, loads, strict=True):
            for f in shown:
                if f.load.name == load and f.speedup is not None:
                    _point(axes, names.index(f.contestant), f.speedup, *colours[f.contestant])
            axes.axvline(1.0, color=_QUIET, linewidth=1)
            _rows(axes, names, labels=axes is panels[0])
            axes.set_xlim(0, most * 1.06)
            axes.locator_params(axis="x", nbins=8 // len(loads) + 2)
            axes.set_title(load if len(loads) > 1 else "")
            axes.set_xlabel("times plain decoding")

    label = "Speed-up over plain decoding by contestant"
    return _draw(_rows_height(len(names)), draw, label, len(loads))


def _point(axes: Axes, row: int, value: Interval, colour: str, mark: str) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=2.5, alpha=0.55)
    axes.plot([value.value], [row], color=colour, marker=mark, markersize=7, linestyle="none")
    axes.annotate(
        f"{value.value:.2f}", (value.value, row), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=9,
    )  # fmt: skip


def _rows(axes: Axes, names: Sequence[str], labels: bool = True) -> None:
    shown = [_short(name) if labels else "" for name in names]
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _short(name: str) -> str:
    """A name that leaves room for what it is the name of."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 13]}…{name[-12:]}"


def rates(figures: Sequence[Figures], order: Sequence[str]) -> Markup | None:
    """Tokens a second: bars under one load, lines over the number of texts at a time."""
    shown = [f for f in figures if f.tok_s is not None and f.category is None]
    closed = sorted({f.load.concurrency or 1 for f in shown if f.load.kind == "closed"})
    names = [name for name in order if any(f.contestant == name for f in shown)]
    if not names:
        return None
    colours = _colours(order)

    def lines(axes: Axes) -> None:
        for name in names:
            mine = [f for f in shown if f.contestant == name and f.load.kind == "closed"]
            mine.sort(key=lambda f: f.load.concurrency or 1)
            at = [f.load.concurrency or 1 for f in mine]
            rate = [f.tok_s.value for f in mine if f.tok_s is not None]
            colour, mark = colours[name]
            axes.plot(at, rate, color=colour, marker=mark, label=_short(name))
        axes.set_xscale("log", base=2)
        axes.set_xticks(closed, [str(n) for n in closed])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("texts at a time")
        axes.set_ylabel("tokens a second")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    def bars(axes: Axes) -> None:
        for row, name in enumerate(names):
            f = next(f for f in shown if f.contestant == name)
            if f.tok_s is None:
                continue
            axes.barh(row, f.tok_s.value, color=colours[name][0], height=0.55)
            if f.tok_s.low is not None and f.tok_s.high is not None:
                axes.plot([f.tok_s.low, f.tok_s.high], [row, row], color=_INK, linewidth=1.2)
            axes.annotate(f" {f.tok_s.value:.3g}", (max(f.tok_s.value, f.tok_s.high or 0), row),
                          va="center", fontsize=9)  # fmt: skip
        _rows(axes, names)
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel("tokens a second")

    if len(closed) > 1:
        return _draw(3.2, lines, "Tokens a second over the number of texts at a time")
    return _draw(_rows_height(len(names)), bars, "Tokens a second by contestant")


def positions(figures: Sequence[Figures], order: Sequence[str]) -> Markup | None:
    """Acceptance by draft position: given that all before stand, and of all up to there."""
    shown = [f for f in figures if f.positions and f.category is None]
    shown = [f for f in shown if f.load.name == shown[0].load.name]
    if not shown:
        return None
    colours = _colours(order)

    def draw(left: Axes, right: Axes) -> None:
        for f in shown:
            colour, mark = colours[f.contestant]
            at = [p.position for p in f.positions]
            left.plot(at, [p.conditional for p in f.positions], color=colour, marker=mark,
                      markersize=5, label=_short(f.contestant))  # fmt: skip
            right.plot(at, [p.joint for p in f.positions], color=colour, marker=mark, markersize=5)
        most = max(p.position for f in shown for p in f.positions)
        for axes, title in ((left, "conditional"), (right, "joint")):
            axes.set_ylim(0, 1.02)
            axes.set_xticks(range(1, most + 1, max(1, most // 8)))
            axes.set_xlabel("draft position")
            axes.set_title(title)
        left.set_ylabel("accepted")
        left.figure.legend(loc="outside lower center", ncols=min(3, len(shown)))

    return _draw(3.6, draw, "Acceptance by draft position", 2)


def categories(figures: Sequence[Figures], order: Sequence[str]) -> Markup | None:
    """Speed-up by category: a row a category, a mark a contestant."""
    shown = [f for f in figures if f.speedup is not None and f.category is not None]
    shown = [f for f in shown if f.load.name == shown[0].load.name]
    names = list(dict.fromkeys(f.category or "" for f in shown))
    if not names:
        return None
    colours = _colours(order)
    contestants = [name for name in order if any(f.contestant == name for f in shown)]

    def draw(axes: Axes) -> None:
        step = 0.6 / max(1, len(contestants))
        for f in shown:
            assert f.speedup is not None
            colour, mark = colours[f.contestant]
            place = contestants.index(f.contestant)
            row = names.index(f.category or "") + (place - (len(contestants) - 1) / 2) * step
            if f.speedup.low is not None and f.speedup.high is not None:
                span = [f.speedup.low, f.speedup.high]
                axes.plot(span, [row, row], color=colour, linewidth=1.5, alpha=0.5)
            first = names.index(f.category or "") == 0
            axes.plot([f.speedup.value], [row], color=colour, marker=mark, markersize=5,
                      linestyle="none", label=_short(f.contestant) if first else None)  # fmt: skip
        axes.axvline(1.0, color=_QUIET, linewidth=1)
        _rows(axes, names)
        axes.set_xlim(left=0)
        axes.set_xlabel("times plain decoding")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    height = 0.75 + 0.16 * len(names) * max(2, len(contestants))
    return _draw(height, draw, "Speed-up by category")


def times(figures: Sequence[Figures]) -> Markup | None:
    """Where a request's time goes: one bar a contestant, its waste hatched."""
    shown = [f for f in figures if f.time is not None and f.category is None]
    shown = [f for f in shown if f.load.name == shown[0].load.name]
    if not shown:
        return None
    kinds = ("prefill", "draft", "verify", "host", "other")
    place = {"prefill": 6, "draft": 1, "verify": 0, "host": 2, "other": 7}

    def draw(axes: Axes) -> None:
        for row, f in enumerate(shown):
            assert f.time is not None
            left = 0.0
            for kind in kinds:
                share = getattr(f.time, kind)
                axes.barh(row, share, left=left, height=0.55, color=_SERIES[place[kind]],
                          label=kind if row == 0 else None)  # fmt: skip
                if share > 0.06:
                    axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center",
                              fontsize=8.5, color=_PAPER)  # fmt: skip
                left += share
            axes.barh(row + 0.39, f.time.waste, left=f.time.prefill, height=0.1, color=_QUIET,
                      label="waste, a part of draft and verify" if row == 0 else None)  # fmt: skip
        _rows(axes, [f.contestant for f in shown])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.figure.legend(loc="outside lower center", ncols=6)

    return _draw(_rows_height(len(shown)) + 0.3, draw, "Where a request's time goes")


def latencies(figures: Sequence[Figures], order: Sequence[str]) -> Markup | None:
    """TTFT and TPOT: p50 to p99, with p95 marked."""
    shown = [f for f in figures if f.category is None and (f.ttft or f.tpot)]
    shown = [f for f in shown if f.load.name == shown[0].load.name]
    if not shown:
        return None
    colours = _colours(order)

    def draw(*panels: Axes) -> None:
        for axes, name in zip(panels, ("ttft", "tpot"), strict=True):
            for row, f in enumerate(shown):
                found = getattr(f, name)
                if found is None:
                    continue
                colour, mark = colours[f.contestant]
                p50, p95, p99 = (1e3 * v for v in (found.p50, found.p95, found.p99))
                axes.plot([p50, p99], [row, row], color=colour, linewidth=2.5, alpha=0.45)
                axes.plot([p95, p99], [row, row], color=colour, marker="|", markersize=9,
                          linestyle="none")  # fmt: skip
                axes.plot([p50], [row], color=colour, marker=mark, markersize=6)
            _rows(axes, [f.contestant for f in shown], labels=axes is panels[0])
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlabel("milliseconds")
            axes.set_title({"ttft": "time to first token", "tpot": "time per output token"}[name])

    return _draw(_rows_height(len(shown)) + 0.15, draw, "Latencies by contestant", 2)
