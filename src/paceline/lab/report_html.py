"""The parts a report's page is made of: escaping, tables, figures, and the page around them.

One file that needs nothing else: styles and pictures are inside it. Knows no results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from markupsafe import Markup, escape

Cell = str | Markup | None

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{parts}
</main>
</body>
</html>
"""


def page(title: str, parts: Iterable[Markup]) -> str:
    """The whole file."""
    style = (files("paceline.lab") / "report.css").read_text(encoding="utf-8")
    inside = Markup("\n").join(part for part in parts if part)
    return _PAGE.format(title=escape(title), style=style.strip(), parts=inside)


def join(*parts: Cell) -> Markup:
    """Parts one after the other; None is nothing. Text is escaped."""
    return Markup("\n").join(part for part in parts if part)


def section(title: str, *body: Cell, intro: Cell = None) -> Markup:
    """A part of the page under a heading; nothing where there is no body."""
    inside = join(*body)
    if not inside:
        return Markup("")
    name = "".join(c if c.isalnum() else "-" for c in title.lower())
    lead = Markup('<p class="intro">{}</p>').format(intro) if intro else Markup("")
    return Markup('<section id="{}">\n<h2>{}</h2>\n{}\n{}\n</section>').format(
        name, title, lead, inside
    )


def table(
    head: Sequence[Cell], rows: Iterable[Sequence[Cell]], caption: Cell = None, words: int = 1
) -> Markup:
    """A table. words: how many columns, from the left, hold words; the others are numbers. A column
    in which nothing stands is left out, but for the first."""
    cells = [list(row) for row in rows]
    if not cells:
        return Markup("")
    kept = [n for n in range(len(head)) if n == 0 or any(row[n] for row in cells)]

    def line(row: Sequence[Cell], tag: str) -> Markup:
        made = Markup("")
        for n in kept:
            kind = "" if n < words else Markup(' class="n"')
            made += Markup("<{}{}>{}</{}>").format(
                Markup(tag), kind, "" if row[n] is None else row[n], Markup(tag)
            )
        return Markup("<tr>{}</tr>").format(made)

    title = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    body = Markup("\n").join(line(row, "td") for row in cells)
    return Markup(
        '<div class="wide"><table>{}<thead>{}</thead><tbody>\n{}\n</tbody></table></div>'
    ).format(title, line(head, "th"), body)


def number(value: float | None, digits: int = 2) -> Cell:
    """A number with so many digits behind the point; nothing for None."""
    return None if value is None else f"{value:.{digits}f}"


def pairs(values: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they are, as a list of definitions."""
    made = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in values
    )
    return Markup('<dl class="pairs">{}</dl>').format(made) if made else Markup("")


def figure(svg: Markup | None, caption: Cell) -> Markup:
    """A picture with what it shows; nothing where there is none."""
    if not svg:
        return Markup("")
    return Markup("<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>").format(svg, caption)


def bullets(lines: Iterable[Cell]) -> Markup:
    made = Markup("\n").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<ul>\n{}\n</ul>").format(made) if made else Markup("")


def details(title: str, *body: Cell) -> Markup:
    """What is read on demand; open where it is printed."""
    inside = join(*body)
    if not inside:
        return Markup("")
    return Markup("<details>\n<summary>{}</summary>\n{}\n</details>").format(title, inside)
