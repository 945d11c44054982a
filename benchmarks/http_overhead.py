"""What HTTP adds to TPOT: the same texts from the engine alone and through a socket, in turn.

The server runs in this process, over the very engine that is also asked directly, so that both
sides meet the same state; the client is a process of its own (this file again, `--client`). Asked:
less than 5 percent at the median, for plain decoding and with drafts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paceline import Engine, sampling_params
from paceline.server.serving import Server, address, bind
from paceline.server.settings import ServerSettings

PROMPT = 'def read_config(path):\n    """Read a configuration file and return its settings."""\n'
MODEL, AIM = "code", 0.05


# Seconds to the first piece of text, seconds from it to the last, tokens of the first.
Times = tuple[float, float, int]


def alone(engine: Engine, tokens: int, k: int) -> Times:
    """The times of a text that the engine is asked for directly."""
    params = sampling_params(max_tokens=tokens, ignore_eos=True)
    began, stamps = time.perf_counter(), []
    for event in engine.stream(PROMPT, params, k=k):
        if event.token_ids:
            stamps.append((time.perf_counter(), len(event.token_ids)))
    return times(began, stamps)


def times(began: float, stamps: list[tuple[float, int]]) -> Times:
    """stamps: (when, tokens; 1 where the stream does not tell)."""
    return stamps[0][0] - began, stamps[-1][0] - stamps[0][0], stamps[0][1]


def client(host: str, port: int) -> None:
    """Ask for each request that comes on standard input, a JSON line each; answer with the times.

    A bare socket: what a client's own library costs is not the server's.
    """
    with socket.create_connection((host, port), timeout=120) as connection:
        stream = connection.makefile("rb")
        for line in sys.stdin:
            data = line.strip().encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
            )
            began, stamps = time.perf_counter(), []
            connection.sendall(head.encode() + data)
            while (got := stream.readline()) != b"0\r\n":
                if got.startswith(b"data: {"):
                    chunk = json.loads(got[6:])
                    told = chunk.get("paceline", {"tokens": bool(chunk["choices"][0]["text"])})
                    stamps.append((time.perf_counter(), int(told["tokens"])))
                assert got, "the server closed the connection"
            stream.readline()
            print(json.dumps(times(began, [s for s in stamps if s[1]])), flush=True)


def measure(
    options: argparse.Namespace, engine: Engine, url: str, k: int, timing: bool
) -> dict[str, Any]:
    """One case. timing: the client asks for each chunk's times, as the page does and few others."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": options.tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_timing": timing},
        "speculative": {"k": k},
    }  # fmt: skip
    command = [sys.executable, __file__, "--client", host, port]
    through: list[Times] = []
    direct: list[Times] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for run in range(-2, options.runs):  # the first two warm both sides
            for socketed in (run % 2 == 0, run % 2 != 0):
                if socketed:
                    process.stdin.write(json.dumps(body) + "\n")
                    process.stdin.flush()
                    found: Times = tuple(json.loads(process.stdout.readline()))
                else:
                    found = alone(engine, options.tokens, k)
                if run >= 0:
                    (through if socketed else direct).append(found)
        process.stdin.close()

    # The text is the same on both sides, and so are the tokens of its first round.
    behind = options.tokens - direct[0][2]
    ratios = [a[1] / b[1] for a, b in zip(through, direct, strict=True)]
    low, added, high = (q - 1 for q in statistics.quantiles(ratios, n=4))
    return {
        "tpot_alone_ms": round(statistics.median(t[1] for t in direct) / behind * 1e3, 4),
        "tpot_http_ms": round(statistics.median(t[1] for t in through) / behind * 1e3, 4),
        "ttft_alone_ms": round(statistics.median(t[0] for t in direct) * 1e3, 3),
        "ttft_http_ms": round(statistics.median(t[0] for t in through) * 1e3, 3),
        "added_share": round(added, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "met": added < AIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--client", nargs=2, metavar=("HOST", "PORT"), help=argparse.SUPPRESS)
    add("--runs", type=int, default=80, help="of each side, in turn: short ones, as clocks wander")
    add("--tokens", type=int, default=64)
    add("--k", type=int, default=5)
    add("--threads", type=int, default=1, help="one core is the client's")
    add("--dtype", default="bfloat16")
    add("--out", type=Path)
    options = parser.parse_args()
    if options.client:
        client(options.client[0], int(options.client[1]))
        return
    with Engine(
        "mini-target", draft="mini-draft", k=options.k, dtype=options.dtype,
        threads=options.threads, adaptive=False, device="cpu",
    ) as engine:  # fmt: skip
        server, bound = Server(engine, ServerSettings(name=MODEL)), bind("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        cases = {
            f"k={k}{', timing' if timing else ''}": measure(
                options, engine, address(bound), k, timing
            )
            for timing in (False, True)
            for k in (0, options.k)
        }
        server.should_exit = True
        thread.join(30)
        bound.close()
    results = {
        "benchmark": "http_overhead",
        "command": shlex.join(["http_overhead.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "paceline": version("paceline")},
        "cores": os.cpu_count(),
        "runs": options.runs,
        "tokens": options.tokens,
        "cases": cases,
        # What clients ask for; each chunk's times are asked for by few.
        "met": all(case["met"] for name, case in cases.items() if "timing" not in name),
    }
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
