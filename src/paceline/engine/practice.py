"""A few made-up requests before the first user's, through the loop that will serve it."""

from __future__ import annotations

import torch

from paceline.engine.loop import Loop
from paceline.engine.outbox import Reader
from paceline.engine.sequence import Sequence
from paceline.text import Tokenizer
from paceline.types import Request, SamplingParams

_PROMPTS = (300, 240, 128, 60, 12, 128, 128, 128)  # tokens: every recorded pass has its turn
_TOKENS = 8  # that each request writes


def practise(loop: Loop, tokenizer: Tokenizer) -> None:
    """What is slow at first is so now: libraries that set themselves up, graphs that come to the
    device with their first replay, memory that is pinned, clocks that rise.

    loop: one that nobody else will use, whose counts, prefixes and pilot are forgotten with it;
    how fast its feeder reads is worth keeping. The machine is left as it was found.
    """
    limits = loop.machine.slots.limits
    params = SamplingParams(max_tokens=_TOKENS, ignore_eos=True)
    with torch.inference_mode():
        for turn, tokens in enumerate(_PROMPTS):
            ids = (turn % limits.vocab_size,) * max(1, min(tokens, limits.max_length - _TOKENS))
            request = Request(f"practice-{turn}", ids, params, seed=turn)
            sequence = Sequence(request, loop.widest)
            loop.submit(sequence, Reader(request, tokenizer, frozenset(), sequence.stats))
            while not loop.idle:
                loop.step()
