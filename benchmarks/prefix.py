"""One long beginning shared by many requests: time to the first token with and without the prefix
cache, and whether the texts are the same. See README.md.

Each way has an engine of its own, opened with the option; the same requests in the same order.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

from calibrated import add_pair_options, make_ready, roughen
from gpu_common import (
    Bench,
    digits,
    first_difference,
    fixed,
    free,
    median,
    open_engine,
    prompts,
    quiesce,
    say,
)
from gpu_speed import mini_prompts
from harness import Job, Parts, add_options, choose_parts, measure, shrink
from load_check import margin
from load_clients import LOOK, Text, percentiles

from paceline import Engine

_LISTED = 20
SMALL = {
    "shared": 300, "requests": 8, "tokens": 8, "at_once": 3, "k": 2, "dtype": "float64",
    "mini_shared": 300, "target_shape": "", "draft_shape": "",
}  # fmt: skip


def timed(bench: Bench) -> dict[str, Any]:
    """The calibrated pair in the dtype that is asked for; at the end with ordinary weights, of
    which alone the texts say that what was kept of the beginning is right."""
    o = bench.options
    sets = {
        name: _asked(bench, o.requests, o.shared, seed)
        for seed, name in enumerate(("one_by_one", f"{o.at_once}_at_once", "ordinary_weights"))
    }
    longest = o.shared + 2 * o.suffix + o.tokens + 16
    told: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    for cached in (False, True):
        engine = open_engine(
            bench, o.k, adaptive=True, slots=o.at_once, max_length=longest, prefix_cache=cached
        )
        _write(engine, prompts(bench, 2, o.shared, seed=77), o.tokens, 1)  # warms
        found = told["with" if cached else "without"] = {}
        for name, asked in sets.items():
            if name == "ordinary_weights":
                roughen(engine, seed=11)
            found[name] = _measured(engine, asked, o.tokens, o.at_once if "at_once" in name else 1)
            if cached:
                compared[name] = _same(engine, asked, told, name)
            bench.keep(_plain(told) | {"compared": compared})
            say(f"  {'with' if cached else 'without'}, {name}: {found[name]['ttft_ms']}")
        engine.close()
        del engine
        free(bench)
    return _judged(told, compared)


def mini(bench: Bench) -> dict[str, Any]:
    """The bundled pair, real text, in float32, where nothing is lost in rounding."""
    o = bench.options
    options: dict[str, Any] = {} if bench.cuda else {"threads": 1}
    told: dict[str, Any] = {}
    for cached in (False, True):
        engine = Engine(
            "mini-target", draft="mini-draft", dtype="float32", device=str(bench.device), k=o.k,
            slots=o.at_once, seed=1, prefix_cache=cached, **options,
        )  # fmt: skip
        asked = _real(engine, o.requests, o.mini_shared)
        found = _measured(engine, asked, o.tokens, 1)
        told["with" if cached else "without"] = {"one_by_one": found}
        say(f"  mini, {'with' if cached else 'without'}: {found['ttft_ms']}")
        bench.keep(_plain(told))
        if cached:
            compared = {"one_by_one": _same(engine, asked, told, "one_by_one")}
        engine.close()
        del engine
        free(bench)
    return _judged(told, compared)


def _asked(bench: Bench, count: int, shared: int, seed: int) -> list[list[int]]:
    """Prompts that begin alike for `shared` tokens and go on differently, not all for as long."""
    o = bench.options
    begin = prompts(bench, 1, shared, seed=seed)[0]
    draw = random.Random(seed)
    return [
        begin + prompts(bench, 1, draw.randrange(o.suffix // 2, 2 * o.suffix), seed=1000 + i)[0]
        for i in range(count)
    ]


def _real(engine: Engine, count: int, shared: int) -> list[list[int]]:
    """The same of the bundled prompts."""
    texts = [engine.tokenizer.encode(text) for text in mini_prompts()]
    begin: list[int] = []
    while len(begin) < shared:
        begin += texts.pop()
    return [begin[:shared] + texts[i % len(texts)][-48:] for i in range(count)]


def _write(engine: Engine, asked: list[list[int]], tokens: int, at_once: int) -> list[Text]:
    """Write all of them, so many at once, in order."""
    waiting, texts, running = list(asked), list[Text](), list[Text]()
    while waiting or running:
        while waiting and len(running) < at_once:
            now = time.perf_counter()
            handle = engine.submit(waiting.pop(0), fixed(tokens))
            running.append(Text((len(texts), 0), handle, now))
            texts.append(running[-1])
        time.sleep(LOOK)
        now = time.perf_counter()
        for text in running:
            text.look(now)
        running = [text for text in running if not text.done]
    quiesce(engine)
    return texts


def _measured(engine: Engine, asked: list[list[int]], tokens: int, at_once: int) -> dict[str, Any]:
    before, began = engine.stats(), time.perf_counter()
    texts = _write(engine, asked, tokens, at_once)
    after = engine.stats()
    first = [digits((t.stamps[0][0] - t.asked) * 1e3, 4) for t in texts]
    looked = after.prefix_asked - before.prefix_asked
    hits = after.prefix_hits - before.prefix_hits
    return {
        "ttft_ms": {"first": first[0], **percentiles(first[1:])},  # nobody came before the first
        "ttft_ms_each": first,
        "seconds": digits(time.perf_counter() - began, 4),
        "prompt_tokens": sum(map(len, asked)),
        "looked_up": looked,
        "found": hits,
        "texts": [t.ids for t in texts],
    }


def _same(
    engine: Engine, asked: list[list[int]], told: dict[str, Any], name: str
) -> dict[str, Any]:
    """The texts of both ways, token by token; where they part, by how much the one was ahead. The
    engine must hold the weights that they were written with, or the margins mean nothing."""
    same, differ = 0, []
    pairs = zip(told["without"][name]["texts"], told["with"][name]["texts"], strict=True)
    for number, (a, b) in enumerate(pairs):
        place = first_difference(a, b)
        same += place is None
        if place is not None:
            found = margin(engine, [*asked[number], *a[:place]], fixed(1), a[place], b[place])
            differ.append({"request": number, "place": place, "margin": found})
    return {"identical": same, "of": len(asked), "differences": differ[:_LISTED]}


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """Without the texts."""
    return {
        way: {name: {k: v for k, v in one.items() if k != "texts"} for name, one in every.items()}
        for way, every in told.items()
    }


def _judged(told: dict[str, Any], compared: dict[str, Any]) -> dict[str, Any]:
    result = _plain(told) | {"compared": compared}
    short = {}
    for name, one in compared.items():
        ways = [told[way][name]["ttft_ms"] for way in ("without", "with")]
        ratio = median(told["without"][name]["ttft_ms_each"][1:]) / max(
            1e-9, median(told["with"][name]["ttft_ms_each"][1:])
        )
        short[name] = {
            "ttft_ms_without": ways[0], "ttft_ms_with": ways[1], "sooner": digits(ratio, 4),
            "identical": one["identical"], "of": one["of"],
            "widest_margin": max((d["margin"] for d in one["differences"]), default=None),
        }  # fmt: skip
    return result | {"summary": short}


PARTS: Parts = {"timed": timed, "mini": mini}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 300.0)
    add_pair_options(add)
    add("--shared", type=int, default=4000, help="tokens that all prompts begin with")
    add("--suffix", type=int, default=48, help="tokens behind them, from half to twice as many")
    add("--mini-shared", type=int, default=1500, help="part mini: the same")
    add("--requests", type=int, default=50)
    add("--tokens", type=int, default=32, help="of each text")
    add("--at-once", type=int, default=8)
    add("--k", type=int, default=4)
    options = parser.parse_args()
    shrink(options, SMALL)
    choose_parts(parser, options, PARTS)
    return options


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    parts = results["parts"]
    short: dict[str, Any] = {"benchmark": "prefix", "machine": results["machine"]}
    short["errors"] = {n: p["error"][:300] for n, p in parts.items() if "error" in p}
    short["seconds"] = {name: part.get("part_seconds") for name, part in parts.items()}
    return short | {n: p["summary"] for n, p in parts.items() if "summary" in p}


def main() -> None:
    """Run the parts and print the result."""
    options = parse()
    make_ready(options)
    measure(Job("prefix", __file__, PARTS, summary), options)


if __name__ == "__main__":
    main()
