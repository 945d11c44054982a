"""A few made-up requests before the first user's, through the loop that will serve it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator

import torch

from paceline.engine.loop import Loop
from paceline.engine.outbox import Reader
from paceline.engine.sequence import Sequence
from paceline.text import Tokenizer
from paceline.types import Request, SamplingParams

log = logging.getLogger(__name__)

# Tokens of each prompt: every width that passes are recorded with, alone and twice, as far as a
# step reads so much; then some that are all alike.
_PROMPTS = (13, 13, 61, 61, 121, 121, 251, 251, 128, 128)
# What they ask for in turn: the stages that rounds are recorded with and without.
_KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.9, logprobs=1),
)
_TOKENS = 8  # that each writes


def practise(loop: Loop, tokenizer: Tokenizer, seconds: float = 0.0) -> dict[int, float]:
    """Have slow what is slow at first, now: libraries that set themselves up, graphs of one row
    that come to the device with their first replay, memory that is pinned, clocks that rise.
    Returns how fast prompts were read, see `Feeder.paces`.

    seconds: at least, with the last prompt over and over; clocks take their time. loop: one that
    nobody else will use, whose counts, prefixes and pilot are forgotten with it.
    The machine is left as it was found.
    """
    began, limits = time.perf_counter(), loop.machine.slots.limits
    with torch.inference_mode():
        for turn, tokens in enumerate(_turns(began + seconds)):
            ids = (turn % limits.vocab_size,) * max(1, min(tokens, limits.max_length - _TOKENS))
            params = dataclasses.replace(
                _KINDS[turn % len(_KINDS)], max_tokens=_TOKENS, ignore_eos=True
            )
            request = Request(f"practice-{turn}", ids, params, seed=turn)
            sequence = Sequence(request, loop.widest)
            loop.submit(sequence, Reader(request, tokenizer, frozenset(), sequence.stats))
            while not loop.idle:
                loop.step()
    log.info("practised for %.1f s", time.perf_counter() - began)
    return loop.feeder.paces


def _turns(end: float) -> Iterator[int]:
    """Tokens of one prompt after the other."""
    yield from _PROMPTS
    while time.perf_counter() < end:
        yield _PROMPTS[-1]
