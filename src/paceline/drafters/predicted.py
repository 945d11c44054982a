"""User-predicted text as a drafter: an edited file, a rewritten answer, a filled-in template.

Owns, per slot, the prediction and the last place in it where the output was known to be. All of
a proposal is computed from committed tokens and that place by fixed-shape tensor functions; the
place is moved by `propose` alone, so nothing needs to be observed, and rounds that were drafted
by another, or not at all, do no harm. Knows nothing of models or rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paceline.drafters.base import Drafter, Draw, TargetInfo
from paceline.drafters.ngram import (
    check_suffix_bounds,
    matched_runs,
    run_weights,
    search_bytes,
)
from paceline.errors import RequestError
from paceline.ops.upload import put
from paceline.types import Draft, Limits, MemoryPart, Request, Rows

_START = -2  # stands before the prediction and before the output, so that their starts are equal
_END = -3  # stands after the prediction and equals nothing
_STRAIGHT_ON = 1  # tokens by which the place straight on may have matched less than another


@dataclass(frozen=True, slots=True)
class PredictedOptions:
    """min, max: the fewest and the most tokens of output that must be met in the prediction.

    After a divergence a draft is made again when at least `min` tokens match; straight on, where
    a replacement of equal length would go on, one token fewer.
    """

    min: int = 2
    max: int = 8


class PredictedDrafter(Drafter):
    """Proposes the prediction from the place that the output has reached.

    The place is the one after the longest match (up to `max` tokens) with the end of the output.
    Among equal matches the place straight on wins, then the nearest after the last known place,
    then, from the beginning of the prediction, the rest. The start of the output counts as
    matched with the start of the prediction. Nothing is proposed while the place is unknown.
    """

    name: ClassVar[str] = "predicted"
    Options: ClassVar[type[PredictedOptions]] = PredictedOptions

    def __init__(self, options: PredictedOptions | None = None) -> None:
        self.options = options or PredictedOptions()
        check_suffix_bounds(self.name, self.options.min, self.options.max, _STRAIGHT_ON + 1)

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """The predictions, and a search through them."""
        width = self.options.max + limits.max_length + limits.max_k
        kept = 8 * (limits.slots * (width + 4) + 2 * limits.max_length)
        return (MemoryPart("predictions", kept + search_bytes(limits, self.options.max)),)

    def bind(self, target: TargetInfo, limits: Limits) -> None:
        """Allocate the predictions and the places: (max + L + K + 1) and 4 numbers a slot."""
        longest, device = self.options.max, limits.device
        self._limits = limits
        width = longest + limits.max_length + limits.max_k
        self._text = torch.full((limits.slots, width), _END, dtype=torch.int64, device=device)
        self._text[:, :longest] = _START
        # Per slot: prompt length, prediction length, last known place, and that less the text's
        # length at that time.
        self._state = torch.zeros(limits.slots, 4, dtype=torch.int64, device=device)
        self._back = torch.arange(-longest, 0, device=device)
        self._ahead = torch.arange(longest, longest + limits.max_k, device=device)
        self._places = torch.arange(limits.max_length + 1, device=device)
        self._after = self._places + 1
        self._weights = run_weights(longest, device)
        # On a CPU only as many places are searched as the longest prediction has; elsewhere a
        # captured round must not change its shapes, so all are.
        self._static = device.type != "cpu"
        self._sizes = [0] * limits.slots

    def admit(self, slot: int, request: Request) -> None:
        """Copy the prediction, cut at the slot's length. Raises RequestError on a bad token id."""
        for token in request.prediction:
            if not 0 <= token < self._limits.vocab_size:
                raise RequestError(
                    f"the prediction holds token id {token}, outside the vocabulary of "
                    f"{self._limits.vocab_size}: encode it with the target's tokenizer"
                )
        kept = request.prediction[: self._limits.max_length]
        self._write(slot, kept, len(request.prompt))

    def release(self, slot: int) -> None:
        """Forget the prediction."""
        self._write(slot, (), 0)

    def _write(self, slot: int, prediction: tuple[int, ...], start: int) -> None:
        longest, size = self.options.max, len(prediction)
        self._sizes[slot] = size
        self._text[slot, longest:] = _END
        put(self._text[slot, longest:], prediction)
        put(self._state[slot], (start, size, 0, -start))

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return up to k tokens a row from the prediction; count 0 at its end or when lost."""
        longest = self.options.max
        n = self._limits.max_length if self._static else max(self._sizes)
        text = self._text[:, : longest + n + k].index_select(0, rows.index)
        state = self._state.index_select(0, rows.index)  # [B, 4]
        start, size, place, shift = state.unsqueeze(2).unbind(1)  # [B, 1] each
        length = rows.length.unsqueeze(1)  # [B, 1]

        # The last tokens of the output, with _START where they would reach into the prompt.
        column = length + self._back  # [B, max]
        written = rows.tokens[rows.index.unsqueeze(1), column.clamp(min=0)]
        suffix = written.masked_fill_(column < start, _START)
        windows = text[:, : longest + n].unfold(1, longest, 1)  # [B, n + 1, max]
        runs = matched_runs(windows, suffix, self._weights)  # [B, n + 1]
        straight = self._places[: n + 1] == length + shift
        runs = torch.addcmul(runs, runs, straight, value=(1 << _STRAIGHT_ON) - 1)

        # Nearness, n to 0: greatest at the last known place, falling after it and then from the
        # beginning on.
        near = (place - self._after[: n + 1]) % (n + 1)
        best, chosen = near.add_(runs, alpha=n + 1).max(1, keepdim=True)  # [B, 1] each
        found = best >= ((n + 1) << self.options.min)

        known = torch.cat((start, size, chosen, chosen - length), 1)
        self._state.index_copy_(0, rows.index, torch.where(found, known, state))
        tokens = text.gather(1, chosen + self._ahead[:k]).clamp_(min=0)
        count = ((size - chosen).clamp_(0, k) * found).squeeze(1)
        return Draft(tokens, count, torch.zeros_like(count))
