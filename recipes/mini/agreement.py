"""Acceptance from agreement: what a fixed-K engine would accept, computed in one parallel pass.

Under `match` and under greedy decoding the draft at a position is made from the text before it, so
whether a drafted token would be accepted is known per position, and rounds can be replayed exactly.
Owns that replay and the count of repeated text; knows nothing about training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data import Vocabulary
from model import Llama, choose

DRAFT_LENGTHS = (4, 5, 6, 8)
REPEAT = 32  # tokens


@torch.no_grad()
def coupled_agreement(
    draft: Llama, ids: Tensor, start: int, temperature: Tensor, seed: int, rows: int = 64
) -> Tensor:
    """Whether the draft, with the target's own noise, names each token of ids[:, start:]."""
    logits = torch.cat(
        [draft.logits(draft(part[:, :-1]))[:, start - 1 :] for part in ids.split(rows)]
    )
    agree = torch.empty(len(ids), ids.shape[1] - start, dtype=torch.bool, device=ids.device)
    for i in range(agree.shape[1]):
        agree[:, i] = choose(logits[:, i], temperature, seed, start + i) == ids[:, start + i]
    return agree


def repeated(ids: Tensor) -> Tensor:
    """True for tokens that lie in a REPEAT-gram seen earlier in their row; ids [B, T]."""
    flags = torch.zeros_like(ids, dtype=torch.bool)
    for row, line in enumerate(ids.tolist()):
        seen: set[tuple[int, ...]] = set()
        for end in range(REPEAT, len(line) + 1):
            gram = tuple(line[end - REPEAT : end])
            if gram in seen:
                flags[row, end - REPEAT : end] = True
            seen.add(gram)
    return flags


def replay(agree: list[bool], k: int) -> tuple[int, int, int]:
    """Rounds, accepted and evaluated drafts of one completion at fixed K (full length, no cut)."""
    at = rounds = accepted = evaluated = 0
    while at < len(agree):
        room = min(k, len(agree) - at)
        run = 0
        while run < room and agree[at + run]:
            run += 1
        accepted += run
        evaluated += min(run + 1, room)
        at += run + 1
        rounds += 1
    return rounds, accepted, evaluated


def figures(rows: list[list[bool]]) -> dict[str, object]:
    """Agreement and, for each K, acceptance rate and tokens per round over completions."""
    count = sum(map(len, rows))
    if not count:
        return {"tokens": 0}
    per_k = {}
    for k in DRAFT_LENGTHS:
        totals = [sum(t) for t in zip(*(replay(row, k) for row in rows), strict=True)]
        per_k[str(k)] = {
            "acceptance_rate": totals[1] / max(1, totals[2]),
            "tokens_per_round": count / max(1, totals[0]),
        }
    return {"tokens": count, "agreement": sum(map(sum, rows)) / count, "k": per_k}


def summarise(agree: Tensor, ids: Tensor, start: int, words: Vocabulary) -> dict[str, object]:
    """Figures up to the natural stop (included), for those that stop, and without repeats."""
    new = ids[:, start - 1 :]
    stops = words.stops(new)[:, 1:]
    places = torch.where(stops.any(1), stops.int().argmax(1) + 1, stops.shape[1]).tolist()
    stopped = stops.any(1).tolist()
    again = repeated(ids)[:, start:]
    rows = [row[:n] for row, n in zip(agree.tolist(), places, strict=True)]
    spoiled = [bool(flags[:n].any()) for flags, n in zip(again, places, strict=True)]
    repeats = sum(int(flags[:n].sum()) for flags, n in zip(again, places, strict=True))
    return {
        "all": figures(rows),
        "natural_stop": figures([r for r, s in zip(rows, stopped, strict=True) if s]),
        "natural_stop_without_repeats": figures(
            [r for r, s, bad in zip(rows, stopped, spoiled, strict=True) if s and not bad]
        ),
        "share_stopped": sum(stopped) / len(stopped),
        "share_repeated": repeats / max(1, sum(places)),
    }
