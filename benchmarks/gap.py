"""What is read among running texts: how long these wait for their next token, and how long the
reading takes, for several bounds on the wait (`max_gap`) and for none. Part `gap`: a long prompt.
Part `return`: a drafter that rested while these texts were read and has to see them. See README.md.

One engine; the bound is exchanged between runs. Gaps are those a caller sees who looks every half
millisecond.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

from calibrated import ACCEPTANCE, Heads, add_pair_options, follows, make_ready
from gpu_common import Bench, digits, fixed, median, open_engine, prompts, quiesce, say
from harness import Job, Lines, Parts, add_options, choose_parts, measure, shrink
from load_clients import Text

from paceline import Engine
from paceline.engine.acceptance import Track
from paceline.engine.fixed import FixedK
from paceline.engine.pilot import Launch, Pilot

LOOK = 0.0005
_FIRST = 16  # tokens that every text has before anything is measured
SMALL = {
    "streams": 3, "long": 1500, "stream_prompt": 20, "stream_tokens": 1500, "bounds": [0.02, 0.04],
    "repeats": 1, "quiet": 0.2, "prefill_chunk": 1024, "k": 2, "texts": 2, "text_prompt": 900,
    "target_shape": "", "draft_shape": "",
}  # fmt: skip


def seconds(text: str) -> list[float]:
    """Numbers with commas between."""
    return [float(part) for part in text.split(",")]


def gap(bench: Bench) -> dict[str, Any]:
    """Every bound in turn, and no bound."""
    o = bench.options
    room = o.streams * (o.stream_prompt + o.stream_tokens + 64) + o.long + 256
    with Lines() as log:
        engine = open_engine(
            bench, o.k, adaptive=True, slots=o.streams + 1, cache_tokens=room,
            max_length=max(o.long + 64, o.stream_prompt + o.stream_tokens),
            prefill_chunk=o.prefill_chunk,
        )  # fmt: skip
        law = Heads(bench).law(ACCEPTANCE)
        result: dict[str, Any] = {"look_ms": LOOK * 1e3, "acceptance": ACCEPTANCE}
        asked = prompts(bench, o.streams, o.stream_prompt, seed=1)
        _run(bench, engine, asked, None, law, 0)  # warms, and tells the acceptance and the pace
        bounds: list[float | None] = [*o.bounds, None]
        runs: dict[str, list[dict[str, Any]]] = {_name(bound): [] for bound in bounds}
        for repeat in range(o.repeats):
            for bound in bounds:
                told = _run(bench, engine, asked, bound, law, 1 + repeat)
                runs[_name(bound)].append(told)
                say(
                    f"  bound {_name(bound)}: longest gap {told['longest_gap_ms']} ms, without the "
                    f"prompt {told['quiet']['longest_gap_ms']}; its first token after "
                    f"{told['long_ttft_ms']} ms"
                )
                result |= {"runs": runs, "log": log.lines}
                bench.keep(result)
    result["summary"] = {name: _short(every) for name, every in runs.items()}
    return result


def _name(bound: float | None) -> str:
    return "none" if bound is None else f"{bound * 1e3:g} ms"


def _short(runs: list[dict[str, Any]]) -> dict[str, Any]:
    keep = (
        "longest_gap_ms",
        "longest_gap_at",
        "p99_gap_ms",
        "long_ttft_ms",
        "texts_tok_s",
        "kept",
        "right",
    )
    short = {name: [run[name] for run in runs] for name in keep if name in runs[0]}
    short["quiet_longest_gap_ms"] = [run["quiet"]["longest_gap_ms"] for run in runs]
    return short | {"quiet_texts_tok_s": [run["quiet"]["texts_tok_s"] for run in runs]}


def _run(
    bench: Bench, engine: Engine, asked: list[list[int]], bound: float | None, law: Any, seed: int
) -> dict[str, Any]:
    """Running texts alone for a while, then with the long prompt until its first token."""
    o = bench.options
    quiesce(engine)
    long = prompts(bench, 1, o.long, seed=100 + seed)[0]  # now: later nobody looks meanwhile
    engine._driver.ask(lambda: setattr(engine._loop.feeder, "max_gap", bound))
    texts = [
        Text((i, 0), engine.submit(ids, fixed(o.stream_tokens)), time.perf_counter())
        for i, ids in enumerate(asked)
    ]
    while not all(len(text.ids) >= _FIRST for text in texts):
        _look(texts)
    began = time.perf_counter()
    while time.perf_counter() - began < o.quiet:
        _look(texts)
    handed = time.perf_counter()
    last = Text((-1, 0), engine.submit(long, fixed(8)), time.perf_counter())
    while not last.stamps:
        _look([*texts, last])
    ended = last.stamps[0][0]
    while not last.done:  # and its first rounds
        _look([*texts, last])
    told = _gaps(texts, last.asked, ended, bound) | {
        "quiet": _gaps(texts, began, handed, bound),
        "long_ttft_ms": digits((ended - last.asked) * 1e3),
        "texts_ended_early": sum(text.done for text in texts),
        "speculation": engine.stats().speculation,
    }
    for text in texts:
        text.handle.cancel()
    quiesce(engine)
    right = [follows(law, ids[-1], text.ids) for ids, text in zip(asked, texts, strict=True)]
    return told | {"right": all([*right, follows(law, long[-1], last.ids)])}


def _look(texts: list[Text]) -> None:
    time.sleep(LOOK)
    now = time.perf_counter()
    for text in texts:
        text.look(now)


def _gaps(texts: list[Text], begin: float, end: float, bound: float | None) -> dict[str, Any]:
    """The gaps between two tokens of one text that touch the stretch, and the texts' rate in it."""
    found, tokens = list[tuple[float, float]](), 0
    for text in texts:
        tokens += sum(count for at, count in text.stamps if begin <= at <= end)
        pairs = pairwise(at for at, _ in text.stamps)
        found += [(b - a, a) for a, b in pairs if b > begin and a < end]
    found.sort()
    longest, at = found[-1]
    gaps = [gap for gap, _ in found]
    told: dict[str, Any] = {
        "longest_gap_ms": digits(longest * 1e3),
        "longest_gap_at": digits((at - begin) / (end - begin), 3),  # 0: when the prompt came
        "p99_gap_ms": digits(gaps[int(0.99 * (len(gaps) - 1))] * 1e3),
        "median_gap_ms": digits(median(gaps) * 1e3),
        "gaps": len(gaps),
        "texts_tok_s": digits(tokens / (end - begin)),
    }
    if bound is not None:
        over = sum(gap > bound for gap in gaps)
        told |= {"bound_ms": digits(bound * 1e3), "gaps_over_bound": over, "kept": not over}
    return told


class Resting:
    """Who decides K, but while `rests`: then nothing is drafted or shown to the drafter."""

    def __init__(self, own: Pilot) -> None:
        self._own, self.rests = own, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @property
    def paused(self) -> bool:
        return self.rests or self._own.paused

    def plan(self, tracks: list[Track], context: float) -> Launch:
        """See `engine.pilot.Pilot.plan`."""
        launch = self._own.plan(tracks, context)
        return launch.without_drafts(tracks) if self.rests else launch


def returning(bench: Bench) -> dict[str, Any]:
    """A drafter that has seen nothing of long texts is wanted: every bound in turn, and none."""
    o = bench.options
    room = o.texts * (o.text_prompt + o.stream_tokens + 64) + 256
    engine = open_engine(
        bench, o.k, slots=o.texts, cache_tokens=room, prefill_chunk=o.prefill_chunk,
        max_length=o.text_prompt + o.stream_tokens,
    )  # fmt: skip
    law = Heads(bench).law(ACCEPTANCE)
    bounds: list[float | None] = [*o.bounds, None]
    runs: dict[str, list[dict[str, Any]]] = {_name(bound): [] for bound in bounds}
    # The first teaches what the drafter takes alone, and is not counted.
    for turn, bound in enumerate([o.bounds[0], *bounds * o.repeats]):
        told = _return(bench, engine, bound, law, seed=turn)
        say(
            f"  bound {_name(bound)}: longest gap {told['longest_gap_ms']} ms, the first draft "
            f"after {told['first_draft_ms']}"
        )
        if turn:
            runs[_name(bound)].append(told)
            bench.keep({"acceptance": ACCEPTANCE, "runs": runs})
    keep = ("longest_gap_ms", "p99_gap_ms", "first_draft_ms", "kept", "right")
    short = {
        name: {key: [run[key] for run in every] for key in keep if key in every[0]}
        for name, every in runs.items()
    }
    return {"acceptance": ACCEPTANCE, "runs": runs, "summary": short}


def _return(
    bench: Bench, engine: Engine, bound: float | None, law: Any, seed: int
) -> dict[str, Any]:
    """Texts that run, and from a moment on with drafts."""
    o, loop = bench.options, engine._loop
    quiesce(engine)
    asked = prompts(bench, o.texts, o.text_prompt, seed=200 + seed)
    pilot = Resting(FixedK(o.k))
    engine._driver.ask(lambda: setattr(loop, "pilot", pilot))
    engine._driver.ask(lambda: setattr(loop.feeder, "max_gap", None))
    texts = [
        Text((i, 0), engine.submit(ids, fixed(o.stream_tokens)), time.perf_counter())
        for i, ids in enumerate(asked)
    ]
    while not all(len(text.ids) >= _FIRST for text in texts):
        _look(texts)
    behind = sum(len(text.ids) for text in texts) + o.texts * o.text_prompt
    engine._driver.ask(lambda: setattr(loop.feeder, "max_gap", bound))
    began = time.perf_counter()
    while time.perf_counter() - began < o.quiet:
        _look(texts)
    before, handed = engine.stats().drafted, time.perf_counter()
    pilot.rests = False
    while engine.stats().drafted == before and not all(text.done for text in texts):
        _look(texts)
    drafts = time.perf_counter()
    while time.perf_counter() - drafts < o.quiet and not all(text.done for text in texts):
        _look(texts)
    told = _gaps(texts, handed, drafts, bound) | {
        "quiet": _gaps(texts, began, handed, bound),
        "tokens_to_show": behind,
        "first_draft_ms": digits((drafts - handed) * 1e3),
        "drafting": _gaps(texts, drafts, time.perf_counter(), None),
        "texts_ended_early": sum(text.done for text in texts),
    }
    for text in texts:
        text.handle.cancel()
    quiesce(engine)
    right = all(follows(law, ids[-1], text.ids) for ids, text in zip(asked, texts, strict=True))
    return told | {"right": right}


PARTS: Parts = {"gap": gap, "return": returning}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 400.0)
    add_pair_options(add)
    add("--streams", type=int, default=16, help="running texts")
    add("--stream-prompt", type=int, default=128)
    add("--stream-tokens", type=int, default=3000, help="at most; they are cancelled")
    add("--long", type=int, default=32768, help="tokens of the long prompt")
    add("--bounds", type=seconds, default=[0.03, 0.06], help="of max_gap; none comes last")
    add("--quiet", type=float, default=1.0, help="seconds without the long prompt, before it")
    add("--texts", type=int, default=8, help="of part return")
    add(
        "--text-prompt", type=int, default=8192, help="tokens that the drafter has not seen of each"
    )
    add("--repeats", type=int, default=2)
    add("--prefill-chunk", type=int, default=2048)
    add("--k", type=int, default=4)
    options = parser.parse_args()
    shrink(options, SMALL)
    choose_parts(parser, options, PARTS)
    return options


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    keep = ("summary", "error", "part_seconds")
    short = {
        name: {key: part[key] for key in keep if key in part}
        for name, part in results["parts"].items()
    }
    return {"benchmark": "gap", "machine": results["machine"]} | short


def main() -> None:
    """Measure and print the result."""
    options = parse()
    make_ready(options)
    measure(Job("gap", __file__, PARTS, summary), options)


if __name__ == "__main__":
    main()
