"""TTFT from the socket for a long prompt, with and without `POST /v1/warm` of its first part.

The prompt is what a voice agent has: everything up to the question is known while the user still
speaks. Two servers are asked the same things in turn, one cold, the other warmed before; every
prompt has a beginning of its own, so that nothing of it is in a prefix cache. The texts must be
equal.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from server_process import MODEL, ServerProcess, mini_target
from tokenizers import Tokenizer


def prompt_of(
    tokenizer: Tokenizer, seed: int, count: int, tail: int
) -> tuple[list[int], list[int]]:
    """A program of `count` tokens: its beginning, and the `tail` tokens that come at the end."""
    draw, lines = random.Random(seed), [f"# version {seed}"]
    ids: list[int] = []
    while len(ids) < count:
        name = f"step_{draw.randrange(10**6)}"
        lines += [f"def {name}(value):", f"    return value * {draw.randrange(999)} + 1", ""]
        ids = tokenizer.encode("\n".join(lines)).ids
    ids = ids[:count]
    return ids[: count - tail], ids


def stream(url: str, prompt: list[int], tokens: int) -> tuple[float, str]:
    """Seconds from sending to the first text, and the whole text."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    body = {
        "model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    data = json.dumps(body)
    connection.connect()
    began, first, pieces = time.perf_counter(), 0.0, []
    connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read().decode()}")
    for line in answer:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            pieces.append(json.loads(line[6:])["choices"][0]["text"])
    connection.close()
    return first, "".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--prompt-tokens", type=int, default=2000)
    add("--tail", type=int, default=24, help="tokens that are not known when it is warmed")
    add("--tokens", type=int, default=24)
    add("--pairs", type=int, default=20)
    add("--threads", type=int, default=None)
    add("--dtype", default="bfloat16")
    add("--out", type=Path)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(mini_target() / "tokenizer.json"))
    served = ["--dtype", options.dtype]
    served += [] if options.threads is None else ["--threads", str(options.threads)]
    cold: list[float] = []
    warm: list[float] = []
    warming: list[float] = []
    equal = 0
    with ServerProcess(served) as plain, ServerProcess(served) as other:
        for server in (plain, other):
            stream(server.url, prompt_of(tokenizer, -1, options.prompt_tokens, 1)[1], 4)
        for pair in range(options.pairs):
            known, whole = prompt_of(tokenizer, pair, options.prompt_tokens, options.tail)
            texts: dict[bool, str] = {}
            for warmed in (True, False) if pair % 2 else (False, True):
                server = other if warmed else plain
                if warmed:
                    began = time.perf_counter()
                    server.complete({"prompt": known}, "/v1/warm")
                    warming.append(time.perf_counter() - began)
                seconds, texts[warmed] = stream(server.url, whole, options.tokens)
                (warm if warmed else cold).append(seconds)
            equal += texts[True] == texts[False]
            print(f"pair {pair}: {cold[-1] * 1e3:.1f} ms cold, {warm[-1] * 1e3:.1f} ms warmed",
                  file=sys.stderr)  # fmt: skip
        status = max(plain.stop(), other.stop())
    results = {
        "benchmark": "warm",
        "command": shlex.join(["warm.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "paceline": version("paceline")},
        "cores": os.cpu_count(),
        "prompt_tokens": options.prompt_tokens,
        "unknown_tokens": options.tail,
        "ttft_cold_ms": told(cold),
        "ttft_warmed_ms": told(warm),
        "warming_ms": told(warming),
        "ratio": round(statistics.median(cold) / statistics.median(warm), 2),
        "texts_equal": [equal, options.pairs],
        "exit_status": status,
    }
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))
    sys.exit(0 if equal == options.pairs and status == 0 else 1)


def told(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1e3, 2),
        "least": round(ordered[0] * 1e3, 2),
        "most": round(ordered[-1] * 1e3, 2),
    }


if __name__ == "__main__":
    main()
