"""`paceline serve` at saturation, driven by a client of others' making, a third of which hang up.

Judged: no error but the clients' own, nothing held at the end that was not held before (pages,
memory, threads, files, sockets), exit status 0. Reported: TTFT and TPOT as the client saw them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from server_process import MODEL, ServerProcess, mini_target

_GROWTH_MIB = 48  # of memory, beyond 3 %: what an allocator may keep
_REPOSITORY, _COMMIT = "paceline/mini", "0" * 40


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tokenizer_cache(folder: Path) -> None:
    """The bundled tokenizer, laid out as the hub's cache: aiperf looks nowhere else offline."""
    place = folder / f"models--{_REPOSITORY.replace('/', '--')}"
    snapshot = place / "snapshots" / _COMMIT
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(_COMMIT)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).write_bytes((mini_target() / name).read_bytes())


def load(options: argparse.Namespace, url: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Run the client for so long; what it saw."""
    out = folder / f"run-{time.monotonic_ns()}"
    command = [
        str(options.aiperf), "profile", "-m", MODEL, "-u", url, "--endpoint-type", "completions",
        "--streaming", "--use-legacy-max-tokens", "--use-server-token-count",
        "--concurrency", str(options.concurrency), "--benchmark-duration", str(seconds),
        "--benchmark-grace-period", "120", "--isl", str(options.prompt_tokens),
        "--osl", str(options.tokens), "--prompt-corpus", "coding", "--tokenizer", _REPOSITORY,
        "--extra-inputs", "ignore_eos:true", "--random-seed", "1", "--ui", "none",
        "--request-cancellation-rate", str(options.hang_up),
        "--request-cancellation-delay", str(options.hang_up_after),
        "--no-gpu-telemetry", "--no-server-metrics", "--workers-max", "1",
        "--output-artifact-dir", str(out),
    ]  # fmt: skip
    offline = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    environment = {**os.environ, **offline, "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False,
        timeout=seconds + 400,
    )  # fmt: skip
    summary = out / "profile_export_aiperf.json"
    if done.returncode or not summary.is_file():
        sys.exit(
            f"aiperf ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        )
    told = json.loads(summary.read_text())
    lines = (out / "profile_export.jsonl").read_text().splitlines()
    errors = Counter(
        f"{record['error']['code']} {record['error']['type']}"
        for record in map(json.loads, lines)
        if record.get("error")
    )
    return {
        "command": shlex.join(["aiperf", *command[1:-1], "OUT"]).replace(url, "URL"),
        "requests": len(lines),
        "hung_up": errors.pop("499 RequestCancellationError", 0),
        "errors": dict(errors),
        "ttft_ms": percentiles(told, "time_to_first_token"),
        "tpot_ms": percentiles(told, "inter_token_latency"),
        "tok_s": round(told["output_token_throughput"]["avg"], 2),
    }


def percentiles(told: dict[str, Any], name: str) -> dict[str, float]:
    return {key: round(told[name][key], 3) for key in ("p50", "p95", "p99")}


def statuses(figures: dict[str, float]) -> dict[str, int]:
    """Answers by status, of the paths that write text."""
    counts: Counter[str] = Counter()
    for name, value in figures.items():
        if name.startswith('paceline:http_requests_total{path="/v1/'):
            counts[name.partition('status="')[2].rstrip('"}')] += int(value)
    return dict(counts)


def judge(results: dict[str, Any]) -> dict[str, bool]:
    before, after, client = results["before"], results["after"], results["client"]
    allowed = before["rss_mib"] * 1.03 + _GROWTH_MIB
    return {
        "no_errors": not client["errors"] and set(results["statuses"]) <= {"200", "499"},
        "no_failures_in_the_log": results["failures"] == 0,
        "some_hung_up": client["hung_up"] > 0 and results["statuses"].get("499", 0) > 0,
        "pages_given_back": after["pages_used"] == 0,
        "memory_steady": after["rss_mib"] <= allowed,
        "threads_steady": after["threads"] <= before["threads"],
        "files_steady": after["files"] <= before["files"] + 1,  # a connection of /metrics' reader
        "sockets_steady": after["sockets"] <= before["sockets"] + 1,
        "exit_status_0": results["exit_status"] == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--aiperf", type=Path, default=Path("out/load/bin/aiperf"), help="the client's program")
    add("--seconds", type=float, default=600.0, help="of load that is judged")
    add("--warm-seconds", type=float, default=60.0, help="of load before the first look")
    add("--concurrency", type=int, default=8, help="clients; more than --slots saturate")
    add("--slots", type=int, default=4)
    add("--threads", type=int, default=None)
    add("--prompt-tokens", type=int, default=128)
    add("--tokens", type=int, default=128)
    add("--hang-up", type=float, default=33.3, help="percent of the clients that hang up midway")
    add("--hang-up-after", type=float, default=0.5, help="seconds after which they do")
    add("--out", type=Path)
    options = parser.parse_args()
    options.aiperf = options.aiperf.absolute()
    if not options.aiperf.is_file():
        parser.error(f"no {options.aiperf}: benchmarks/README.md says how to install it")
    served = ["--slots", str(options.slots), "--queue", str(4 * options.concurrency)]
    served += [] if options.threads is None else ["--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as name, ServerProcess(served) as server:
        folder = Path(name)
        (folder / "hub").mkdir()
        tokenizer_cache(folder / "hub")
        say(f"ready after {server.ready_seconds:.1f} s; warming for {options.warm_seconds:g} s")
        load(options, server.url, options.warm_seconds, folder)
        assert server.quiet(), "texts go on that nobody waits for"
        before = server.holds()
        say(f"before: {before}; load for {options.seconds:g} s")
        client = load(options, server.url, options.seconds, folder)
        emptied = server.quiet()
        time.sleep(2)  # connections that the client closed
        after, figures = server.holds(), server.figures()
        say(f"after: {after}")
        results: dict[str, Any] = {
            "benchmark": "server_load",
            "command": shlex.join(["server_load.py", *sys.argv[1:]]),
            "versions": {"python": platform.python_version(), "paceline": version("paceline")},
            "cores": os.cpu_count(),
            "client": client,
            "before": before,
            "after": after,
            "emptied": emptied,
            "statuses": statuses(figures),
            "failures": sum(line["event"] == "failure" for line in server.log),
            "exit_status": server.stop(),
        }
    results["judged"] = judge(results)
    results["passed"] = emptied and all(results["judged"].values())
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))
    sys.exit(0 if results["passed"] else 1)


if __name__ == "__main__":
    main()
