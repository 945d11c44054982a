"""`paceline report`: a run's summary as one page that a manager and an engineer can both read.

The verdict first, then what it rests on, then everything. Each section is a function from results
to HTML, so that a page of other results is made of other sections; those of figures are in
`report_figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from paceline.lab import report_plots as plots
from paceline.lab.bench_gpu import ordinal
from paceline.lab.bench_record import Contestant
from paceline.lab.bench_result import Comparison, Summary
from paceline.lab.report_figures import (
    acceptance,
    by_category,
    latency,
    overall,
    resources,
    speed,
    time_spent,
)
from paceline.lab.report_html import (
    Cell,
    bullets,
    details,
    join,
    number,
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
    return join(
        Markup("<h1>{}</h1>").format(title),
        Markup('<p class="under">{}</p>').format(", ".join([what, *_gpus(summary)])),
        Markup('<div class="{}">{}</div>').format(kind, said),
        _cards(summary),
    )


def _gpus(summary: Summary) -> list[str]:
    """The GPUs that contestants computed on: each one's own word, else the machine's."""
    found: dict[str, None] = {}
    for opening in summary.openings:
        place = ordinal(opening.contestant.options.get("device", "cpu"))
        name = opening.facts.get("gpu") or summary.machine.get(f"gpu {place}")
        if name is not None:
            found[name] = None
    return list(found)


def _cards(summary: Summary) -> Markup:
    whole = [f for f in overall(summary) if f.load == _first_load(summary)]
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


def _first_load(summary: Summary) -> object:
    return summary.figures[0].load if summary.figures else None


def problems(summary: Summary) -> Markup:
    """What went wrong; nothing where nothing did."""
    lines = [Markup("<b>{}</b>: {}").format(p.where, p.what) for p in summary.problems]
    if len(lines) > 12:
        return section("Problems", bullets(lines[:12]), details("All of them", bullets(lines[12:])))
    return section("Problems", bullets(lines))


def texts(summary: Summary) -> Markup:
    """Who wrote the same as whom."""
    rows, apart = [], []
    for c in summary.comparisons:
        kind = "good" if c.same == c.texts else "bad" if c.binding else "warn"
        share = Markup('<span class="{}">{} of {}</span>').format(kind, c.same, c.texts)
        rows.append([
            c.contestant, c.other, "must be the same" if c.binding else "for information", share,
            number(c.lengths), str(c.unlike) if c.unlike else None,
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


def _words(values: dict[str, str]) -> Cell:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value)


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
                     "the first piece, which may hold a round's"),
            ("closed:N", "N texts at any time: the next is asked for when one is finished"),
            ("poisson:R", "R requests a second at random times, whether or not others are "
                          "finished"),
            ("replay:F", "the times of a recorded log, F times as fast"),
        ]),
    )  # fmt: skip


def pairs_wide(values: Sequence[tuple[str, str]]) -> Markup:
    """Words and what they mean."""
    return table(["", ""], [[name, meaning] for name, meaning in values], words=2)
