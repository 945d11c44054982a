"""Parts `parts`, `curve` and `profile` of `gpu_round.py`: the graphs alone, replayed.

One engine with room for the longest context and the most rows serves all points, so weights are
read once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from gpu_common import (
    Bench,
    Watch,
    config_of,
    digits,
    median,
    open_engine,
    round_bytes,
    say,
    settle,
    shares,
)  # fmt: skip
from gpu_recorded import RecordedRound, accept_seconds, fill, randomize_caches, record
from torch.profiler import ProfilerActivity

from paceline import Engine
from paceline.kv.pools import KVPool
from paceline.ops.device_attention import NARROW
from paceline.types import Limits, Window

_SPARE = 256  # positions behind a context


def _wide_engine(bench: Bench, rows: int, context: int, k: int) -> Engine:
    engine = open_engine(bench, k, slots=rows, max_length=context + _SPARE, capture=False)
    with torch.inference_mode():
        randomize_caches(engine)
    return engine


def parts(bench: Bench) -> dict[str, Any]:
    """Device time of verify-and-accept, of the draft loop and of accepting alone."""
    o = bench.options
    engine = _wide_engine(bench, max(o.batches), max(o.contexts), max(1, *o.parts_ks))
    points: list[dict[str, Any]] = []
    with torch.inference_mode():
        for context in o.contexts:
            fill(bench, engine, max(o.batches), context)
            for batch in o.batches:
                for k in o.parts_ks:
                    where = {"batch": batch, "context": context, "k": k}
                    try:
                        points.append(where | _point(bench, engine, batch, context, k))
                    except Exception as error:
                        points.append(where | {"error": repr(error)})
                done = points[-1].get("round_ms", points[-1].get("error"))
                say(f"  batch {batch}, context {context}, k {k}: {done} ms a round")
                bench.keep({"points": points})
    return {"points": points, "repeats": o.graph_repeats}


def _point(bench: Bench, engine: Engine, batch: int, context: int, k: int) -> dict[str, Any]:
    began = time.perf_counter()
    made = RecordedRound(bench, engine, batch, context, k)
    prepared = time.perf_counter() - began
    first, second = made.times(bench.options.graph_repeats)
    second = second if k else 0.0
    committed = made.n.tolist()
    accept = accept_seconds(bench, made, bench.options.graph_repeats)
    made.state.restore()
    verify, draft = round_bytes(bench, batch, context, k)
    return {
        "verify_ms": digits(first * 1e3),
        "draft_ms": digits(second * 1e3),
        "round_ms": digits((first + second) * 1e3),
        "accept_us": digits(accept * 1e6, 4),
        "verify": shares(bench, verify, first),
        "draft": shares(bench, draft, second),
        "round": shares(bench, verify + draft, first + second),
        "rows_committed_nothing": sum(n == 0 for n in committed),
        "prepared_s": digits(prepared, 3),
    }


# --- the cost curve ----------------------------------------------------------------------------

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32, 33, 48, 64, 96, 128, 192, 256)
_SHAPES = [(b, w) for b in (2, 4, 8, 16, 32) for w in (1, 2, 4, 6, 9)] + [(64, 1), (64, 4)]


def curve(bench: Bench) -> dict[str, Any]:
    """Cost of the target's pass and head by rows and window width, as a planner reads it."""
    o = bench.options
    engine = open_engine(
        bench, 0, slots=1, max_length=max(o.curve_contexts) + _SPARE + 8, capture=False
    )
    target, limits = engine._loop.machine.target, engine._loop.machine.slots.limits
    shapes = [(1, w) for w in WIDTHS] + _SHAPES
    shapes = [(b, w) for b, w in shapes if b * w <= o.most_tokens]
    # The largest first, as work space that is too small is kept; but prompts' passes last, in case
    # that they cannot be recorded.
    shapes.sort(key=lambda shape: (shape[1] > NARROW, -shape[0] * shape[1]))
    page, table = limits.page_size, limits.table
    points: list[dict[str, Any]] = []
    with torch.inference_mode():
        pool = KVPool(target.spec, max(b for b, _ in shapes) * table + 1, page, bench.device)
        for layer in pool.layers:
            layer.keys.normal_()
            layer.values.normal_()
        for context in o.curve_contexts:
            for batch, width in shapes:
                where = {"batch": batch, "width": width, "context": context}
                try:
                    made = _window(bench, batch, width, context, limits)
                    points.append(where | _pass(bench, target, pool, made))
                except Exception as error:
                    points.append(where | {"error": repr(error)})
            say(f"  context {context}: {len(shapes)} shapes")
            bench.keep({"points": points})
    points.sort(key=lambda p: (p["context"], p["batch"], p["width"]))
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else "cpu"
    config = config_of(o.target)
    model = f"{config.architecture} {config.parameters() / 1e9:.2f}B {o.dtype}"
    return {"model": model, "device": name, "points": points}


def _window(bench: Bench, batch: int, width: int, context: int, limits: Limits) -> Window:
    """The window of `batch` rows whose roots are token number `context`."""
    device, vocab, page = bench.device, limits.vocab_size, limits.page_size
    pages = 1 + torch.arange(batch * limits.table, device=device).view(batch, -1)
    position = (context - 1 + torch.arange(width, device=device)).repeat(batch, 1)  # [B, W]
    return Window(
        ids=torch.randint(vocab // 8, vocab // 2, (batch, width), device=device),
        position=position,
        address=pages.gather(1, position // page) * page + position % page,
        valid=torch.ones_like(position, dtype=torch.bool),
        bounds=(context - 1 + width,) * batch,
        pages=pages,
        page_size=page,
    )


def _pass(bench: Bench, target: Any, pool: KVPool, window: Window) -> dict[str, Any]:
    def run() -> None:
        target.head(target.forward(window, pool)[0])

    run()
    settle(bench)
    replay, captured = run, False
    if bench.cuda:
        try:
            replay, captured = record(bench, run)[0].replay, True
        except Exception as error:
            say(f"  not recorded, timed eagerly: {error!r}")
    replay()
    watch = Watch(bench.device)
    watch.mark()
    for _ in range(bench.options.graph_repeats):
        replay()
        watch.mark()
    return {"seconds": digits(median(watch.seconds())), "captured": captured}


# --- the profile -------------------------------------------------------------------------------


def profile(bench: Bench) -> dict[str, Any]:
    """Tables by kernel of a plain round and of one with k drafts; kernels a graph launches."""
    o = bench.options
    rows, context = max(o.batches), min(o.contexts)
    ks = sorted({*o.parts_ks, o.k})
    engine = _wide_engine(bench, rows, context, max(1, *ks))
    result: dict[str, Any] = {"context": context, "kernels": []}
    with torch.inference_mode():
        fill(bench, engine, rows, context)
        for batch in o.batches:
            for k in ks:
                try:
                    made = RecordedRound(bench, engine, batch, context, k)
                    if batch == 1 and k in (0, o.k):
                        result[f"round k={k}"] = _table(bench, made, k)
                    result["kernels"].append({"batch": batch, "k": k} | _counts(bench, made, k))
                    made.state.restore()
                except Exception as error:
                    result["kernels"].append({"batch": batch, "k": k, "error": repr(error)})
            say(f"  batch {batch}: {result['kernels'][-1]}")
            bench.keep(result)
    return result


def _events(bench: Bench, work: Any) -> list[tuple[str, float]]:
    """Names and microseconds of what the device ran for `work`; on a CPU, of its operators."""
    kind = ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU
    device = torch.autograd.DeviceType.CUDA if bench.cuda else torch.autograd.DeviceType.CPU
    settle(bench)
    with torch.profiler.profile(activities=[kind]) as profiler:
        work()
        settle(bench)
    return [
        (event.name, event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type == device
    ]


def _counts(bench: Bench, made: RecordedRound, k: int) -> dict[str, Any]:
    """Kernels that the first graph launches, and the second; copies and fills apart."""
    result: dict[str, Any] = {}
    for name, replay in (("verify", made.first), ("draft", made.second)):
        names = [event for event, _ in _events(bench, replay)] if name == "verify" or k else []
        moved = sum(event.startswith(("Memcpy", "Memset")) for event in names)
        result[name] = len(names) - moved
        result[f"{name}_copies"] = moved
    return result


def _table(bench: Bench, made: RecordedRound, k: int) -> dict[str, Any]:
    """Calls, microseconds and share by kernel, per round; what a round takes beside them."""
    repeats = bench.options.graph_repeats
    first, second = made.times(repeats)

    def work() -> None:
        for _ in range(repeats):
            made.first()
            made.second()

    found: dict[str, list[float]] = defaultdict(list)
    for name, duration in _events(bench, work):
        found[name].append(duration)
    made.state.restore()
    total = sum(map(sum, found.values())) or 1.0
    rows = [
        {
            "name": name[:120],
            "calls": digits(len(times) / repeats, 4),
            "us": digits(sum(times) / repeats, 4),
            "us_each": digits(median(times), 4),
            "share": digits(sum(times) / total, 3),
        }
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    for row in rows[:12]:
        say(f"    k {k}: {row['calls']:7} × {row['us_each']:7} µs {row['share']:6}  {row['name']}")
    return {
        "round_us": digits((first + (second if k else 0.0)) * 1e6),
        "kernels_us": digits(total / repeats),
        "rows": rows,
    }
