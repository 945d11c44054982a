"""N-gram drafter: what followed the same words last time.

Owns the search for the longest suffix of the committed text that stands earlier in it, as tensor
functions over the token matrix: fixed shapes, no state, no host read. Knows nothing of requests,
models or rounds. `matched_runs` also serves the drafter of user-predicted text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from paceline.drafters.base import Drafter, Draw, TargetInfo
from paceline.errors import ConfigError
from paceline.types import Draft, Limits, MemoryPart, Rows

LONGEST = 20  # a run is kept as one bit of a float32 sum, which is exact below 2 ** 24
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class NgramOptions:
    """min, max: the fewest and the most tokens of the suffix that are compared."""

    min: int = 2
    max: int = 8


class NgramDrafter(Drafter):
    """Proposes what followed the most recent earlier occurrence of the longest suffix.

    A suffix of `min` to `max` tokens is looked for; a longer match wins, then a later one. Where
    the match ends fewer than k tokens before the end of the text, the draft goes on by copying
    from itself, so that periodic text is continued with its period; hence a row has k tokens or
    none.
    """

    name: ClassVar[str] = "ngram"
    Options: ClassVar[type[NgramOptions]] = NgramOptions

    def __init__(self, options: NgramOptions | None = None) -> None:
        self.options = options or NgramOptions()
        check_suffix_bounds(self.name, self.options.min, self.options.max)

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """A search through texts as long as they may be."""
        columns = 8 * limits.max_length
        return (MemoryPart("n-gram search", columns + search_bytes(limits, self.options.max)),)

    def bind(self, target: TargetInfo, limits: Limits) -> None:
        """Make the constants that every proposal reads."""
        self._columns = torch.arange(limits.max_length, device=limits.device)  # [L]
        self._steps = torch.arange(
            max(limits.max_k, self.options.max), device=limits.device
        )  # [max(K, max)]
        self._weights = run_weights(self.options.max, limits.device)  # [max]

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return k tokens a row, count k where a suffix of at least `min` tokens was found."""
        longest, bound = self.options.max, column_bound(rows)
        text = rows.tokens[:, :bound].index_select(0, rows.index)  # [B, n]
        padded = pad(text, (longest - 1, 0), value=_NO_TOKEN)  # [B, max - 1 + n]
        last = (rows.length - 1).clamp_(min=0).unsqueeze(1)  # [B, 1] column of the root
        suffix = padded.gather(1, last + self._steps[:longest])  # [B, max]
        runs = matched_runs(padded.unfold(1, longest, 1), suffix, self._weights)  # [B, n]

        # A match ends before the root; among equal runs the greatest column wins.
        columns = self._columns[:bound]
        score = (runs * bound + columns) * (columns < last)  # [B, n]
        best, end = score.max(1, keepdim=True)  # [B, 1] each
        found = best >= (bound << self.options.min)

        period = (last - end).clamp_(min=1)
        follow = last - period + 1 + self._steps[:k] % period  # [B, k], never past the root
        tokens = text.gather(1, follow) * found
        count = found.squeeze(1) * k
        return Draft(tokens, count, torch.zeros_like(count))


def check_suffix_bounds(name: str, least: int, most: int, floor: int = 1) -> None:
    """Raise ConfigError unless floor <= least <= most <= LONGEST."""
    if not floor <= least <= most <= LONGEST:
        raise ConfigError(
            f"drafter {name!r}: min and max must satisfy {floor} <= min <= max <= {LONGEST}, "
            f"not min={least}, max={most}"
        )


def column_bound(rows: Rows) -> int:
    """How many columns of `rows.tokens` can hold committed text, known to the host. At least 1."""
    width = rows.tokens.shape[1]
    return max(1, min(width, max(rows.bounds, default=width)))


def run_weights(length: int, device: torch.device) -> Tensor:
    """The constant that `matched_runs` needs for windows of `length`: [m] float32."""
    return torch.tensor([2.0**i for i in reversed(range(length))], device=device)


def search_bytes(limits: Limits, length: int) -> int:
    """What a search with windows of `length` through whole rows of a full round holds, at most."""
    rows = 1 << (limits.slots - 2).bit_length()  # as recorded rounds have them
    # A bool and a float32 a token of each window, and six int64 a window.
    return rows * (limits.max_length + length + limits.max_k) * (5 * length + 48)


def matched_runs(windows: Tensor, suffix: Tensor, weights: Tensor) -> Tensor:
    """Return 2 ** r [B, n] int64, r the number of equal tokens at the end of window and suffix.

    windows [B, n, m], suffix [B, m], weights [m] from `run_weights`. The unequal places of a
    window make a binary number, the last token its lowest bit; its lowest set bit is 2 ** r, and
    m where all are equal.
    """
    differs = (windows != suffix.unsqueeze(1)).to(weights.dtype) @ weights  # [B, n]
    bits = differs.to(torch.int64).bitwise_or_(1 << windows.shape[2])
    return bits & -bits
