"""What the target makes of a text that is given: its logits, or every token's log-probability.

Draws nothing, and uses caches of its own: the running texts' slots and pages are not touched. A
long text is read in pieces, so that rounds of others come in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.kv.pools import KVPool
from paceline.models.decoder import Decoder
from paceline.ops.attention import BLOCK
from paceline.speculation.sampling import top_logprobs
from paceline.types import KVSpec, TokenLogprob, Window

PIECE = 256  # tokens a pass: their logits [PIECE, V] are held at once


class Scorer:
    """One text read from its beginning on. Belongs to the engine's thread; the model it is given
    each time, so that a text nobody reads on keeps none."""

    def __init__(self, spec: KVSpec, ids: Sequence[int], device: torch.device) -> None:
        """spec: of the target's cache; ids: the whole text, at least one token."""
        self._ids = list(ids)
        self._text = torch.tensor([self._ids], device=device)  # [1, L]
        count = -(-len(self._ids) // BLOCK)
        self._pages = torch.arange(count, device=device).unsqueeze(0)
        self._pool = KVPool(spec, count, BLOCK, device)
        self.done = 0  # tokens read

    @property
    def left(self) -> int:
        """Tokens that are still to be read for what comes after each; the last has nothing."""
        return max(0, len(self._ids) - 1 - self.done)

    def logits(self, target: Decoder, size: int) -> Tensor:
        """Raw logits [n, V] after each of the next n <= size tokens."""
        start, stop = self.done, min(self.done + size, len(self._ids))
        place = torch.arange(start, stop, device=self._text.device).unsqueeze(0)
        text = self._text[:, start:stop]
        window = Window(text, place, place, place >= 0, (stop,), self._pages, BLOCK)
        self.done = stop
        return target.head(target.forward(window, self._pool)[0])

    def logprobs(self, target: Decoder, top: int, size: int) -> list[TokenLogprob]:
        """The next tokens' log-probabilities, after each of `size` read, with the `top` most likely
        at each place. The text's first token has none; an empty list says that there are no more.
        """
        size = min(size, self.left)
        if not size:
            return []
        start = self.done
        logits = self.logits(target, size)
        tokens = self._ids[start + 1 : self.done + 1]
        after = self._text[:, start + 1 : self.done + 1]
        found = top_logprobs(logits.unsqueeze(0), after, min(top, logits.shape[-1]))
        chosen, ids, values = (x[0].tolist() for x in (found.chosen, found.top_ids, found.top))
        return [
            TokenLogprob(token, chosen[i], tuple(zip(ids[i], values[i], strict=True)))
            for i, token in enumerate(tokens)
        ]
