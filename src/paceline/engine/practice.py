"""A few made-up requests before the first user's, so that what is slow at first is slow now:
libraries that set themselves up, graphs of one row that come to the device with their first replay,
memory that is pinned, clocks that rise, code that Python has not run yet.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from paceline.engine.handle import Handle
from paceline.engine.loop import Loop
from paceline.engine.outbox import Reader
from paceline.engine.sequence import Sequence
from paceline.errors import PacelineError
from paceline.text import Tokenizer
from paceline.types import Limits, Request, SamplingParams

log = logging.getLogger(__name__)

# Tokens of each prompt: every width that passes are recorded with, alone and twice, as far as a
# step reads so much.
_PROMPTS = (13, 13, 61, 61, 121, 121, 251, 251)
# What they ask for in turn: the stages that rounds are recorded with and without.
_KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=0.7, top_p=0.9, logprobs=1),
)
_TOKENS = 8  # that each writes
_ASKED, _SECONDS = 128, 1.0  # tokens of those that are asked for as users will, and for how long


def practise(loop: Loop, tokenizer: Tokenizer) -> None:
    """Requests of many kinds, without a caller.

    loop: one that nobody else will use, whose counts, prefixes and pilot are forgotten with it.
    The machine is left as it was found; what reading took (`Feeder.paces`) is remembered.
    """
    began, limits = time.perf_counter(), loop.machine.slots.limits
    with torch.inference_mode():
        for turn, tokens in enumerate(_PROMPTS):
            params = dataclasses.replace(
                _KINDS[turn % len(_KINDS)], max_tokens=_TOKENS, ignore_eos=True
            )
            request = Request(f"practice-{turn}", _made_up(turn, tokens, limits), params, seed=turn)
            sequence = Sequence(request, loop.widest)
            loop.submit(sequence, Reader(request, tokenizer, frozenset(), sequence.stats))
            while not loop.idle:
                loop.step()
    log.info("practised for %.1f s", time.perf_counter() - began)


def ask(take: Callable[[Seq[int], SamplingParams], Handle], limits: Limits) -> None:
    """Requests that are all alike, from the caller's thread to the engine's and back. take: as
    `Intake.take`, into a loop that nobody else will use."""
    began, turn = time.perf_counter(), 0
    params = SamplingParams(max_tokens=_TOKENS, ignore_eos=True)
    try:
        while time.perf_counter() - began < _SECONDS:
            for _ in take(_made_up(turn, _ASKED, limits), params).events():
                pass
            turn += 1
    except PacelineError as error:  # it only saves time: whoever asks in earnest is told
        log.warning("practice broke off: %s", error)
    log.info("asked for %d texts in practice", turn)


def _made_up(turn: int, tokens: int, limits: Limits) -> tuple[int, ...]:
    """A prompt that begins like no other."""
    return (turn % limits.vocab_size,) * max(1, min(tokens, limits.max_length - _TOKENS))
