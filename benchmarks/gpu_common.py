"""What the parts of `gpu_round.py` share: options, engines, prompts, clocks, bytes to be read.

Nothing here measures. Everything also runs on a CPU, where times mean nothing, so that mistakes
are found without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paceline import Engine, SamplingParams
from paceline.models.config import ModelConfig
from paceline.models.loading import resolve
from paceline.types import Request

REFERENCE_RATE = 4.28e12  # bytes a second, read and written, that an H200 was seen to copy
BEGAN = "GPU_ROUND_BEGAN"  # the environment's name for when the whole run did, time.time()
_BEGAN = float(os.environ.get(BEGAN) or time.time())


@dataclass(slots=True)
class Bench:
    """One run. rate: bytes a second that part `bandwidth` measured, or the reference. keep: a part
    hands it what it has so far, in case that it does not come to its end. shared: what parts of one
    process hand to each other, an engine for instance."""

    options: argparse.Namespace
    device: torch.device
    rate: float = REFERENCE_RATE
    keep: Callable[[dict[str, Any]], None] = lambda result: None
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def say(text: str) -> None:
    """Print progress with the seconds since the start."""
    print(f"{time.time() - _BEGAN:7.1f} s  {text}", file=sys.stderr, flush=True)


class Watch:
    """Points in the device's time; on a CPU, in the clock's."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._points: list[Any] = []

    def mark(self) -> None:
        """Note the point behind all that was launched so far; waits for nothing."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._points.append(event)
        else:
            self._points.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Wait, and return the seconds from each point to the next."""
        if not self._cuda:
            return [b - a for a, b in zip(self._points, self._points[1:], strict=False)]
        torch.cuda.synchronize()
        pairs = zip(self._points, self._points[1:], strict=False)
        return [a.elapsed_time(b) / 1e3 for a, b in pairs]


def settle(bench: Bench) -> None:
    """Wait until the device has nothing to do."""
    if bench.cuda:
        torch.cuda.synchronize()


def free(bench: Bench) -> None:
    """Give back what engines that are gone have held."""
    gc.collect()
    if bench.cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def quiesce(engine: Engine) -> None:
    """Wait until the engine's thread has nothing to do: what has ended is booked by then."""
    while not engine._driver.ask(lambda: engine._loop.idle):
        time.sleep(0.001)


def steer(engine: Engine, pilot: Any) -> Any:
    """Exchange who decides how much is drafted; returns who did. No request may be there: what the
    loop keeps of one is its pilot's."""
    quiesce(engine)

    def exchange() -> Any:
        loop = engine._loop
        before, loop.pilot = loop.pilot, pilot
        return before

    return engine._driver.ask(exchange)


def open_engine(bench: Bench, k: int, **more: Any) -> Engine:
    """The pair of --target and --draft, or with k = 0 the target alone. Unless `more` says so, k is
    fixed and nothing is kept of one prompt for another."""
    options = {"device": str(bench.device), "dtype": bench.options.dtype, "seed": 1, "k": k}
    options |= {"adaptive": False, "prefix_cache": False}
    if not bench.cuda:
        options["threads"] = 1
    if k and "drafter" not in more:
        options["draft"] = bench.options.draft
    began = time.perf_counter()
    engine = Engine(bench.options.target, **options | more)
    settle(bench)
    say(f"  engine with k = {k} opened in {time.perf_counter() - began:.1f} s")
    return engine


def prompts(bench: Bench, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of `length` token ids, drawn where vocabularies keep no special tokens."""
    vocab = config_of(bench.options.target).vocab_size
    draw = random.Random(f"{seed} {length}")
    return [[draw.randrange(vocab // 8, vocab * 7 // 8) for _ in range(length)]
            for _ in range(count)]  # fmt: skip


def fixed(tokens: int, **more: Any) -> SamplingParams:
    """Parameters for exactly so many tokens."""
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **more)


def config_of(source: str) -> ModelConfig:
    """A checkpoint's configuration."""
    return ModelConfig.from_folder(resolve(source))


def step_bytes(source: str, dtype: str, batch: int, context: int) -> int:
    """Bytes that one forward pass must read: every weight once, an embedding table that is not
    the head too left out, and the keys and values of `context` positions in each row."""
    config = config_of(source)
    item = getattr(torch, dtype).itemsize
    skipped = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    position = 2 * config.layers * config.kv_heads * config.head_dim
    return (config.parameters() - skipped + batch * context * position) * item


def round_bytes(bench: Bench, batch: int, context: int, k: int) -> tuple[int, int]:
    """Bytes that verifying must read, and those of k steps of the draft."""
    o = bench.options
    draft = step_bytes(o.draft, o.dtype, batch, context) if k else 0
    return step_bytes(o.target, o.dtype, batch, context), k * draft


def shares(bench: Bench, size: float, seconds: float) -> dict[str, float]:
    """How much of the time is what reading `size` bytes takes at least."""
    if not seconds:
        return {}
    return {
        "bound_ms": digits(size / bench.rate * 1e3),
        "share": digits(size / bench.rate / seconds),
        "share_at_reference": digits(size / REFERENCE_RATE / seconds),
    }


def admit(engine: Engine, slot: int, ids: Sequence[int], k: int) -> None:
    """Put a running request into a slot by hand, greedy and without an end."""
    machine = engine._loop.machine
    request = Request(f"slot {slot}", tuple(ids), fixed(1 << 20), seed=slot)
    slots, table = machine.slots, machine.slots.limits.table
    slots.admit(slot, request, (), k)
    slots.set_pages(slot, 0, range(1 + (slot - 1) * table, 1 + slot * table))
    machine.drafter.admit(slot, request)


def median(values: Iterable[float]) -> float:
    """The median, or 0 of nothing."""
    kept = list(values)
    return statistics.median(kept) if kept else 0.0


def digits(value: float, places: int = 5) -> float:
    """`value` with so many significant digits, for JSON."""
    return float(f"{value:.{places}g}")


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two texts differ; None where they are the same."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
