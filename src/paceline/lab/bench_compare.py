"""Texts beside texts: do two contestants write the same, and where do they part.

Against the plain decoding of the same engine that is a test, where the contestant promises the same
text; against others it informs: another engine rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paceline.lab.bench_record import Contestant, Measurement
from paceline.lab.bench_result import Comparison, Parting

_SHOWN = 24  # characters of each text at a parting
_PARTINGS = 20  # of a comparison that are kept

_Place = tuple[str, int, str, int]
"""Item, repeat, load, turn."""


def compare(
    contestants: Sequence[Contestant], measured: Iterable[Measurement]
) -> tuple[Comparison, ...]:
    """Every contestant beside the plain one of its family, and the plain ones (or else the first of
    each family) beside the first of them. measured: without errors."""
    texts: dict[str, dict[_Place, Measurement]] = {c.name: {} for c in contestants}
    for m in measured:
        if m.text_hash is not None and m.contestant.name in texts:
            texts[m.contestant.name][m.item, m.repeat, m.load.name, m.turn] = m
    heads: dict[str, Contestant] = {}
    for contestant in contestants:
        if contestant.family not in heads or contestant.plain:
            heads[contestant.family] = contestant
    pairs = []
    for contestant in contestants:
        head = heads[contestant.family]
        if head is not contestant:
            pairs.append((contestant, head, head.plain))
    first, *others = heads.values()
    pairs += [(other, first, False) for other in others]
    made = [_pair(a, texts[a.name], b, texts[b.name], binding) for a, b, binding in pairs]
    return tuple(c for c in made if c.texts)


def _pair(
    mine: Contestant,
    my_texts: dict[_Place, Measurement],
    other: Contestant,
    its_texts: dict[_Place, Measurement],
    plain: bool,
) -> Comparison:
    texts = same = unlike = 0
    partings: list[Parting] = []
    lengths = [0, 0]
    binding = plain
    parted: set[tuple[str, int, str]] = set()
    for place in sorted(my_texts.keys() & its_texts.keys(), key=lambda p: (p[:3], p[3])):
        a, b = my_texts[place], its_texts[place]
        if place[:3] in parted:
            continue  # a turn after answers that differ answers something else
        texts += 1
        binding = binding and _promised(a)
        lengths[0] += a.new_tokens or 0
        lengths[1] += b.new_tokens or 0
        unlike += None not in (a.prompt_tokens, b.prompt_tokens) and (
            a.prompt_tokens != b.prompt_tokens
        )
        if a.text_hash == b.text_hash:
            same += 1
            continue
        parted.add(place[:3])
        if len(partings) < _PARTINGS:
            partings.append(_parting(a, b))
    return Comparison(
        contestant=mine.name,
        other=other.name,
        binding=binding,
        texts=texts,
        same=same,
        lengths=lengths[0] / lengths[1] if all(lengths) else None,
        unlike=unlike,
        partings=tuple(partings),
    )


def _promised(m: Measurement) -> bool:
    """Whether this text must be the plain one: greedily by any lossless method, and with a seed by
    paceline's rule `match` alone, which draws the same token from the same number."""
    if m.sampling.temperature == 0:
        return True
    return m.contestant.engine == "paceline" and m.contestant.rule == "match"


def _parting(a: Measurement, b: Measurement) -> Parting:
    token = None
    if a.token_ids is not None and b.token_ids is not None:
        token = _first_difference(a.token_ids, b.token_ids)
    mine, its = a.text or "", b.text or ""
    at = _first_difference(mine, its)
    return Parting(a.item, a.turn, at, token, mine[at : at + _SHOWN], its[at : at + _SHOWN])


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))
