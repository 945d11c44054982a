"""The sections of a report that say what was measured: speed, latency, acceptance, time, resources.

Each is a function from a run's summary to HTML, a picture and the table behind it. Says nothing of
texts, settings or the verdict.
"""

from __future__ import annotations

from markupsafe import Markup

from paceline.lab import report_plots as plots
from paceline.lab.bench_result import Figures, Interval, Percentiles, Summary
from paceline.lab.report_html import Cell, details, figure, number, section, table


def speed(summary: Summary) -> Markup:
    """Tokens a second and speed-ups."""
    order, whole = _order(summary), overall(summary)
    rows = [
        [
            f.contestant,
            _load(summary, f),
            _interval(f.tok_s, 1),
            _interval(f.speedup),
            _interval(f.writing_speedup),
            number(f.tokens_per_round),
            number(f.length, 1),
            None if f.natural is None else f"{f.natural:.0%}",
            f"{f.failed} of {f.requests}" if f.failed else None,
        ]
        for f in whole
    ]
    head = ["contestant", "load", "tokens a second", "speed-up", "while writing",
            "tokens a round", "tokens a text", "came to an end", "failed"]  # fmt: skip
    return section(
        "Speed",
        figure(
            plots.speedups(summary.figures, order),
            "Speed-up over the plain decoding of the same engine, on the same prompts. The bar is "
            "the 95\u00a0% interval over prompts; left of 1, speculation costs more than it gives.",
        ),
        figure(plots.rates(summary.figures, order), "Tokens a second, prompts included."),
        table(head, rows, words=2),
        intro="Small print under a number is its 95\u00a0% interval, by drawing prompts anew. The "
        "speed-up is of the whole request; while writing leaves out the first piece of text, "
        "the time to it and its tokens. An "
        "engine without a plain decoding among the contestants has no speed-up.",
    )


def latency(summary: Summary) -> Markup:
    """Times as a user feels them."""
    order = _order(summary)
    rows = [
        [f.contestant, _load(summary, f), *_three(f.ttft), *_three(f.tpot)]
        for f in overall(summary)
        if f.ttft or f.tpot
    ]
    head = ["contestant", "load", "TTFT p50", "p95", "p99", "TPOT p50", "p95", "p99"]
    return section(
        "Latency",
        figure(
            plots.latencies(summary.figures, order),
            "The mark is the median, the ticks are the 95th and the 99th percentile.",
        ),
        table(head, rows, "milliseconds", words=2),
    )


def by_category(summary: Summary) -> Markup:
    """The figures of each category."""
    rows = [
        [
            f.contestant, f.category, _load(summary, f), str(f.requests), _interval(f.tok_s, 1),
            _interval(f.speedup), number(f.tokens_per_round), number(f.acceptance),
            number(f.length, 1),
        ]
        for f in summary.figures
        if f.category is not None
    ]  # fmt: skip
    head = ["contestant", "category", "load", "texts", "tokens a second", "speed-up",
            "tokens a round", "acceptance", "tokens a text"]  # fmt: skip
    return section(
        "By category",
        figure(plots.categories(summary.figures, _order(summary)), "Speed-up by category."),
        details("All figures by category", table(head, rows, words=3)),
    )


def acceptance(summary: Summary) -> Markup:
    """How many draft tokens stand: over all, by position and by drafter."""
    told = [f for f in overall(summary) if f.acceptance is not None]
    rows = [
        [f.contestant, _load(summary, f), number(f.acceptance), number(f.draft_efficiency),
         number(f.tokens_per_round)]
        for f in told
    ]  # fmt: skip
    places = [
        [
            f.contestant, _load(summary, f), str(p.position), str(p.evaluated), str(p.accepted),
            number(p.conditional, 3), number(p.joint, 3),
        ]
        for f in told
        for p in f.positions
    ]  # fmt: skip
    sources = [
        [
            f.contestant, _load(summary, f), s.name,
            str(s.drafted), str(s.evaluated), str(s.accepted),
            number(s.accepted / s.evaluated if s.evaluated else None),
            number(s.accepted / s.drafted if s.drafted else None),
        ]
        for f in told
        for s in f.sources
    ]  # fmt: skip
    categories = [
        [
            f.contestant,
            _load(summary, f),
            f.category,
            number(f.acceptance),
            number(f.tokens_per_round),
        ]
        for f in summary.figures
        if f.category is not None and f.acceptance is not None
    ]
    return section(
        "Acceptance",
        figure(
            plots.positions(summary.figures, _order(summary)),
            "Conditional: of the drafts that were right so far, the share that is right here, too. "
            "Joint: the share that is right up to here.",
        ),
        table(["contestant", "load", "acceptance rate", "draft efficiency", "tokens a round"],
              rows, words=2),
        table(["contestant", "load", "drafter", "drafted", "evaluated", "accepted",
               "acceptance rate", "draft efficiency"], sources, "by drafter", words=3),
        details("By category", table(
            ["contestant", "load", "category", "acceptance rate", "tokens a round"], categories,
            words=3)),
        details("By position", table(
            ["contestant", "load", "position", "evaluated", "accepted", "conditional", "joint"],
            places, words=2)),
        intro="For engines that count their rounds. What stands depends on the text: a loop is "
        "easy to draft, and texts that came to their own end loop least.",
    )  # fmt: skip


def time_spent(summary: Summary) -> Markup:
    """Draft, verify, waste, host."""
    rows = []
    for f in overall(summary):
        if f.time is not None:
            t = f.time
            shares = (t.prefill, t.draft, t.verify, t.host, t.other, t.waste)
            rows.append([f.contestant, _load(summary, f), *(f"{share:.1%}" for share in shares)])
    head = ["contestant", "load", "prefill", "draft", "verify", "host", "other", "waste"]
    return section(
        "Where the time goes",
        figure(
            plots.times(summary.figures),
            "Parts of the requests' time. Waste is the part of draft and verify that went into "
            "draft tokens which were then rejected.",
        ),
        table(head, rows, words=2),
        intro="For engines that tell. Other is waiting for a slot, and what is outside of rounds.",
    )


def resources(summary: Summary) -> Markup:
    """Memory and energy."""
    rows = [
        [
            f.contestant, _load(summary, f), _mib(f.rss), _mib(f.device_bytes),
            number(f.joules_per_token, 3), f.joules_from,
        ]
        for f in overall(summary)
        if f.rss or f.device_bytes or f.joules_per_token is not None
    ]  # fmt: skip
    head = ["contestant", "load", "memory, peak", "device memory, peak", "joules a token",
            "counted by"]  # fmt: skip
    counted = any(f.joules_per_token is not None for f in summary.figures)
    energy = (
        "Energy is the whole device's, whoever used it."
        if counted
        else "Nobody tells energy on this machine: neither NVML nor RAPL could be read."
    )
    return section(
        "Memory and energy",
        table(head, rows, words=2),
        intro="Of contestants that ran on this machine in a process of their own. " + energy,
    )


# --- cells -----------------------------------------------------------------------------------


def overall(summary: Summary) -> list[Figures]:
    """The figures over all categories, one a contestant and load."""
    return [f for f in summary.figures if f.category is None]


def _load(summary: Summary, f: Figures) -> Cell:
    """A load's name where there are several."""
    return f.load.name if len({g.load.name for g in summary.figures}) > 1 else None


def _order(summary: Summary) -> list[str]:
    """Contestants in the order they were given, so that each has one colour on the whole page."""
    return list(dict.fromkeys(f.contestant for f in summary.figures))


def _interval(value: Interval | None, digits: int = 2) -> Cell:
    if value is None:
        return None
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}f}"
    return Markup("{}<small>{} to {}</small>").format(
        f"{value.value:.{digits}f}", f"{value.low:.{digits}f}", f"{value.high:.{digits}f}"
    )


def _three(value: Percentiles | None) -> list[Cell]:
    if value is None:
        return [None, None, None]
    return [f"{1e3 * v:.{0 if v >= 0.1 else 2}f}" for v in (value.p50, value.p95, value.p99)]


def _mib(value: int | None) -> Cell:
    return None if value is None else f"{value / 2**20:.0f} MiB"
