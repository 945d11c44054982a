"""`paceline report`: a run's summary as one page that a manager and an engineer can both read.

The verdict first, then what it rests on, then everything. Each section is a function from results
to HTML, so that a page of other results is made of other sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from paceline.lab import report_plots as plots
from paceline.lab.bench_record import Contestant
from paceline.lab.bench_result import Comparison, Figures, Interval, Percentiles, Summary
from paceline.lab.report_html import (
    Cell,
    bullets,
    details,
    figure,
    join,
    page,
    pairs,
    section,
    table,
)

_PARTINGS = 5  # shown of each comparison


def write_report(summary: Summary, file: Path, title: str) -> None:
    """Write the page. Raises ConfigError where matplotlib is not installed, and OSError."""
    plots.matplotlib_or_error()
    file.write_text(bench_page(summary, title), encoding="utf-8")


def bench_page(summary: Summary, title: str) -> str:
    """The page of a bench run."""
    return page(title, bench_sections(summary, title))


def bench_sections(summary: Summary, title: str) -> list[Markup]:
    """All sections of a bench run, in order."""
    return [
        head(summary, title),
        problems(summary),
        speed(summary),
        latency(summary),
        by_category(summary),
        acceptance(summary),
        time_spent(summary),
        resources(summary),
        texts(summary),
        contestants(summary),
        conditions(summary),
        definitions(),
    ]


# --- sections --------------------------------------------------------------------------------


def head(summary: Summary, title: str) -> Markup:
    """The verdict, and the few numbers it is made of."""
    apart = any(c.binding and c.same < c.texts for c in summary.comparisons)
    kind = "verdict" if summary.complete and not apart else "verdict caution"
    said = Markup("").join(Markup("<p>{}</p>").format(line) for line in summary.verdict)
    what = f"{summary.workload.get('workload', '')}, {summary.workload.get('texts', '?')} texts, " \
        f"{summary.settings.get('loads', '')}; {summary.machine.get('processor', '')}, " \
        f"{summary.machine.get('cores', '?')} cores"  # fmt: skip
    gpu = summary.machine.get("gpu 0")
    return join(
        Markup("<h1>{}</h1>").format(title),
        Markup('<p class="under">{}</p>').format(what + (f", {gpu}" if gpu else "")),
        Markup('<div class="{}">{}</div>').format(kind, said),
        _cards(summary),
    )


def _cards(summary: Summary) -> Markup:
    whole = [f for f in _whole(summary) if f.load == _first_load(summary)]
    sped = [f for f in whole if f.speedup is not None]
    cards: list[tuple[str, str]] = []
    rated = [(f.tok_s.value, f.contestant) for f in whole if f.tok_s is not None]
    if rated:
        rate, name = max(rated)
        cards.append((f"{rate:.3g}", f"tokens a second, the most of all: {name}"))
    if sped:
        best = max(sped, key=lambda f: f.speedup.value if f.speedup else 0.0)
        assert best.speedup is not None
        cards.append((f"{best.speedup.value:.2f} ×", f"best speed-up: {best.contestant}"))
        if best.tokens_per_round is not None:
            cards.append((f"{best.tokens_per_round:.2f}", "tokens a round of it"))
    binding = [c for c in summary.comparisons if c.binding]
    if binding:
        same, texts = sum(c.same for c in binding), sum(c.texts for c in binding)
        cards.append((f"{same} of {texts}", "speculative texts are plain decoding's own"))
    cards.append((f"{summary.measured} of {summary.planned}", "texts measured"))
    made = Markup("").join(
        Markup('<div class="card"><b>{}</b><span>{}</span></div>').format(*card) for card in cards
    )
    return Markup('<div class="cards">{}</div>').format(made)


def problems(summary: Summary) -> Markup:
    """What went wrong; nothing where nothing did."""
    lines = [Markup("<b>{}</b>: {}").format(p.where, p.what) for p in summary.problems]
    if len(lines) > 12:
        return section("Problems", bullets(lines[:12]), details("All of them", bullets(lines[12:])))
    return section("Problems", bullets(lines))


def speed(summary: Summary) -> Markup:
    """Tokens a second and speed-ups."""
    order, whole = _order(summary), _whole(summary)
    rows = [
        [
            f.contestant,
            _load(summary, f),
            _interval(f.tok_s, 1),
            _interval(f.speedup),
            _interval(f.writing_speedup),
            _number(f.tokens_per_round),
            _number(f.length, 1),
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
        "speed-up is of the whole request; while writing leaves out the reading of the prompt. An "
        "engine without a plain decoding among the contestants has no speed-up.",
    )


def latency(summary: Summary) -> Markup:
    """Times as a user feels them."""
    order = _order(summary)
    rows = [
        [f.contestant, _load(summary, f), *_three(f.ttft), *_three(f.tpot)]
        for f in _whole(summary)
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
            _interval(f.speedup), _number(f.tokens_per_round), _number(f.acceptance),
            _number(f.length, 1),
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
    told = [f for f in _whole(summary) if f.acceptance is not None]
    rows = [
        [f.contestant, _load(summary, f), _number(f.acceptance), _number(f.draft_efficiency),
         _number(f.tokens_per_round)]
        for f in told
    ]  # fmt: skip
    places = [
        [
            f.contestant, _load(summary, f), str(p.position), str(p.evaluated), str(p.accepted),
            _number(p.conditional, 3), _number(p.joint, 3),
        ]
        for f in told
        for p in f.positions
    ]  # fmt: skip
    sources = [
        [
            f.contestant, _load(summary, f), s.name,
            str(s.drafted), str(s.evaluated), str(s.accepted),
            _number(s.accepted / s.evaluated if s.evaluated else None),
            _number(s.accepted / s.drafted if s.drafted else None),
        ]
        for f in told
        for s in f.sources
    ]  # fmt: skip
    categories = [
        [
            f.contestant,
            _load(summary, f),
            f.category,
            _number(f.acceptance),
            _number(f.tokens_per_round),
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
    for f in _whole(summary):
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
            _number(f.joules_per_token, 3), f.joules_from,
        ]
        for f in _whole(summary)
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


def texts(summary: Summary) -> Markup:
    """Who wrote the same as whom."""
    rows, apart = [], []
    for c in summary.comparisons:
        kind = "good" if c.same == c.texts else "bad" if c.binding else "warn"
        share = Markup('<span class="{}">{} of {}</span>').format(kind, c.same, c.texts)
        rows.append([
            c.contestant, c.other, "must be the same" if c.binding else "for information", share,
            _number(c.lengths), str(c.unlike) if c.unlike else None,
        ])  # fmt: skip
        if c.partings:
            apart.append(_partings(c))
    head = ["contestant", "beside", "", "same texts", "length, ratio", "prompts read unlike"]
    return section(
        "Texts",
        table(head, rows, words=3),
        details("Where they part", *apart),
        intro="Another engine rounds otherwise, and one other token changes all that follow: a "
        "difference between engines is no fault. One between an engine and its own plain decoding "
        "is, where the method promises the same text.",
    )


def _partings(c: Comparison) -> Markup:
    rows: list[list[Cell]] = [
        [
            p.item, str(p.turn + 1), str(p.character), None if p.token is None else str(p.token),
            Markup("<code>{}</code>").format(repr(p.text)),
            Markup("<code>{}</code>").format(repr(p.other)),
        ]
        for p in c.partings[:_PARTINGS]
    ]  # fmt: skip
    head = ["item", "turn", "character", "token", "it goes on", "the other goes on"]
    return table(head, rows, f"{c.contestant} beside {c.other}", words=6)


def contestants(summary: Summary) -> Markup:
    """Every contestant's settings and versions."""
    rows: list[list[Cell]] = []
    for opening in summary.openings:
        c = opening.contestant
        rows.append([
            c.name, c.engine, c.model, _drafting(c), _words(c.options), _words(opening.facts),
            _words(opening.versions), f"{opening.seconds:.1f} s" if opening.seconds else None,
        ])  # fmt: skip
    head = ["contestant", "engine", "model", "drafts", "settings", "once open", "versions",
            "opened in"]  # fmt: skip
    return section("Contestants", table(head, rows, words=7))


def _drafting(c: Contestant) -> str:
    if c.plain:
        return "nothing: plain decoding"
    parts = [c.drafter or "not known"]
    if c.draft:
        parts.append(f"with {c.draft}")
    if c.k is not None:
        parts.append(f"K {'up to ' if c.adaptive else ''}{c.k}")
    if c.rule:
        parts.append(f"rule {c.rule}")
    return ", ".join(parts)


def conditions(summary: Summary) -> Markup:
    """Workload, settings and machine."""
    return section(
        "Conditions",
        Markup("<h3>Workload and settings</h3>"),
        pairs([*summary.workload.items(), *summary.settings.items()]),
        Markup("<h3>Machine</h3>"),
        pairs(summary.machine.items()),
    )


def definitions() -> Markup:
    """Terms, for those who do not use them every day."""
    return section(
        "Words",
        pairs_wide([
            ("speed-up", "tokens a second over those of the same engine without speculation"),
            ("tokens a round", "what one pass of the target gives: 1 without speculation"),
            ("acceptance rate", "of the draft tokens whose predecessors all stand, the share that "
                                "stands"),
            ("draft efficiency", "of all draft tokens, the share that stands"),
            ("TTFT", "time to first token: from asking to the first piece of text"),
            ("TPOT", "time per output token: from the first piece to the last, by the tokens after "
                     "the first"),
            ("closed:N", "N texts at any time: the next is asked for when one is finished"),
            ("poisson:R", "R requests a second at random times, whether or not others are "
                          "finished"),
            ("replay:F", "the times of a recorded log, F times as fast"),
        ]),
    )  # fmt: skip


def pairs_wide(values: Sequence[tuple[str, str]]) -> Markup:
    """Words and what they mean."""
    return table(["", ""], [[name, meaning] for name, meaning in values], words=2)


# --- cells -----------------------------------------------------------------------------------


def _whole(summary: Summary) -> list[Figures]:
    return [f for f in summary.figures if f.category is None]


def _load(summary: Summary, f: Figures) -> Cell:
    """A load's name where there are several."""
    return f.load.name if len({g.load.name for g in summary.figures}) > 1 else None


def _first_load(summary: Summary) -> object:
    return summary.figures[0].load if summary.figures else None


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


def _number(value: float | None, digits: int = 2) -> Cell:
    return None if value is None else f"{value:.{digits}f}"


def _three(value: Percentiles | None) -> list[Cell]:
    if value is None:
        return [None, None, None]
    return [f"{1e3 * v:.{0 if v >= 0.1 else 2}f}" for v in (value.p50, value.p95, value.p99)]


def _mib(value: int | None) -> Cell:
    return None if value is None else f"{value / 2**20:.0f} MiB"


def _words(values: dict[str, str]) -> Cell:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value)
