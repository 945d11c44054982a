"""Parts `host` and `startup` of `gpu_round.py`: what the host adds to the device's time, whether
it waits where it should not, and how long a process takes until its first token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_common import (
    Bench,
    admit,
    digits,
    fixed,
    median,
    open_engine,
    prompts,
    quiesce,
    say,
    settle,
)  # fmt: skip
from gpu_recorded import RecordedRound

from paceline import Engine
from paceline.engine.prefill import read_chunk
from paceline.errors import StepError
from paceline.models.loading import resolve


def host(bench: Bench) -> dict[str, Any]:
    """Wall time of rounds through the loop against the same rounds replayed without the host."""
    o = bench.options
    length = o.prompt_tokens + (o.k + 1) * (o.host_rounds + o.guarded_rounds + 8)
    engine = open_engine(bench, o.k, slots=1, max_length=length)
    ids = prompts(bench, 1, o.prompt_tokens)[0]
    result: dict[str, Any] = {"rounds": o.host_rounds}
    for k in (o.k, 0):
        _through_loop(bench, engine, ids, k, 20)
        runs = [_compare(bench, engine, ids, k) for _ in range(2)]
        best = min(runs, key=lambda run: run["overhead"])
        result[f"k={k}"] = best | {"overheads": [run["overhead"] for run in runs]}
        bench.keep(result)
        say(f"  k {k}: the host adds {best['overhead']:.2%}")
    if bench.cuda:
        result["sync"] = _guarded(engine, ids, (o.k, 0), o.guarded_rounds)
        say(f"  synchronizing calls: {result['sync']}")
    return result


def _through_loop(
    bench: Bench, engine: Engine, ids: list[int], k: int, rounds: int
) -> tuple[list[float], list[int]]:
    """The time at which each of rounds + 1 events came, and their tokens."""
    settle(bench)
    stamps: list[float] = []
    tokens: list[int] = []
    stream = engine.stream(ids, fixed(1 << 20), k=k)
    for event in stream:
        stamps.append(time.perf_counter())
        tokens += event.token_ids
        if len(stamps) > rounds:
            break
    stream.close()  # type: ignore[attr-defined]
    quiesce(engine)
    settle(bench)
    return stamps, tokens


def _compare(bench: Bench, engine: Engine, ids: list[int], k: int) -> dict[str, Any]:
    rounds = bench.options.host_rounds
    before = engine.stats().verify_seconds + engine.stats().draft_seconds
    stamps, tokens = _through_loop(bench, engine, ids, k, rounds)
    by_events = engine.stats().verify_seconds + engine.stats().draft_seconds - before
    wall = stamps[rounds] - stamps[0]
    machine = engine._loop.machine
    with torch.inference_mode():
        admit(engine, 1, ids, k)
        chunk = engine.config.prefill_chunk
        for start in range(0, len(ids) - 1, chunk):
            read_chunk(machine, 1, start, min(start + chunk, len(ids) - 1))
        made = RecordedRound(bench, engine, 1, len(ids), k)
        gaps = made.running(rounds + 1)
        device = sum(gaps)
        end = int(machine.slots.length[1])
        text = machine.slots.tokens[1, len(ids) : end].tolist()
        machine.slots.release(1)
    return {
        "wall_s": digits(wall),
        "device_s": digits(device),
        "overhead": digits(wall / device - 1, 4),
        "round_ms": digits(wall / rounds * 1e3),
        "device_round_ms": digits(device / rounds * 1e3),
        "in_run_events_s": digits(by_events),
        "same_tokens": text == tokens,
        "tokens": len(tokens),
    }


def _guarded(engine: Engine, ids: list[int], ks: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Rounds while torch refuses calls that make the host wait; first, that it does refuse."""
    result: dict[str, Any] = {}
    probe = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        probe.item()
        result["refuses"] = False
    except RuntimeError:
        result["refuses"] = True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for k in ks:
        quiesce(engine)
        stream = engine.stream(ids, fixed(1 << 20), k=k)
        seen, error = 0, None
        for _ in range(3):  # admission, the prompt, the batch's constants
            next(stream)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(rounds):
                next(stream)
                seen += 1
        except (RuntimeError, StepError) as broken:  # the engine's thread met it
            error = repr(broken)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream.close()  # type: ignore[attr-defined]
        result[f"k={k}"] = {"rounds": seen, "silent": error is None, "error": error}
        if error is not None:
            break  # the engine takes its device for broken
    return result


def startup(bench: Bench) -> dict[str, Any]:
    """From a process' start to ready, with an empty kernel cache and with the one it filled."""
    o = bench.options
    read = sum(_read(source) for source in (o.target, o.draft))
    result: dict[str, Any] = {"bytes_in_page_cache": read}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty", "filled"):
            result[name] = _child(bench, cache)
            bench.keep(result)
            told = {k: v for k, v in result[name].items() if isinstance(v, float)}
            say(f"  {name} cache: {told}")
    return result


def _read(source: str) -> int:
    """Read a checkpoint once, so that its files lie in the page cache."""
    total = 0
    for path in resolve(source).glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 26):
                total += len(chunk)
    return total


def _child(bench: Bench, cache: str) -> dict[str, Any]:
    o = bench.options
    options = {
        "target": o.target, "draft": o.draft, "k": o.k, "dtype": o.dtype,
        "device": str(bench.device), "slots": o.startup_slots,
        "prompts": prompts(bench, o.startup_requests, o.prompt_tokens, seed=7),
    }  # fmt: skip
    script = Path(__file__).with_name("gpu_startup.py")
    began = time.time()
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(options), capture_output=True, text=True, timeout=o.startup_limit,
        env=os.environ | {"TRITON_CACHE_DIR": cache, "PACELINE_CACHE": cache}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    first, last = told["ttft"][0], median(told["ttft"][-5:])
    half = median(told["ttft"][len(told["ttft"]) // 2 :])  # the last five lay up to 3 % beside it
    return {
        "ready_s": digits(told["ready"] - began, 4),
        "interpreter_s": digits(told["started"] - began, 4),
        "import_s": digits(told["imported"] - told["started"], 4),
        "open_s": digits(told["ready"] - told["imported"], 4),
        "first_ttft_ms": digits(first * 1e3),
        "second_ttft_ms": digits(told["ttft"][1] * 1e3),
        "last_ttft_ms": digits(last * 1e3),
        "first_over_last": digits(first / last),
        "first_over_later_half": digits(first / half),
        "requests": len(told["ttft"]),
        "ttft_ms": [digits(t * 1e3, 4) for t in told["ttft"]],
        **{k: v for k, v in told.items() if k not in ("started", "imported", "ready", "ttft")},
    }
