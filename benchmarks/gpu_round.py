"""The round on a GPU: its time, what bounds it, whether its text is right. See README.md.

Measures on one device, part by part (`--parts`), each in a process of its own, so that one that
fails, hangs or breaks the device's context leaves the others alone. The JSON is written to --out
after each part; the last line of stdout is its summary.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_capture
import gpu_check
import gpu_graphs
import gpu_host
import gpu_speed
import torch
import transformers
from gpu_common import BEGAN, REFERENCE_RATE, Bench, digits, free, say

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "bandwidth": gpu_speed.bandwidth,
    "stream": gpu_speed.stream,
    "host": gpu_host.host,
    "check": gpu_check.check,
    "mini": gpu_speed.mini,
    "startup": gpu_host.startup,
    "parts": gpu_graphs.parts,
    "curve": gpu_graphs.curve,
    "capture": gpu_capture.capture,
    "profile": gpu_graphs.profile,  # last: a profiler may leave traces in what is timed after it
}
# Everything as small as it can be, to find mistakes without a GPU.
SMALL = {
    "contexts": [24, 40], "batches": [1, 2], "parts_ks": [0, 2], "curve_contexts": [24],
    "most_tokens": 6, "prompts": 2, "other_prompts": 1, "repeats": 1, "prompt_tokens": 20,
    "new_tokens": 12, "k": 2, "ks": [1, 2], "graph_repeats": 2, "host_rounds": 6,
    "guarded_rounds": 3, "capture_rounds": 40, "mini_prompts": 2, "check_contexts": [24],
    "check_tokens": 8, "text_prompts": 2, "text_tokens": 12, "startup_requests": 6,
}  # fmt: skip


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--parts", default="all", help=f"some of {', '.join(PARTS)}, comma between, or all")
    add("--target", default="mini-target", help="checkpoint folder of the (calibrated) target")
    add("--draft", default="mini-draft", help="checkpoint folder of its draft")
    add("--device", default="cuda")
    add("--dtype", default="bfloat16")
    add("--out", type=Path, help="write the JSON there, after each part")
    add("--small", action="store_true", help="as little of everything as there can be")
    add("--k", type=int, default=5, help="draft tokens a round, where one number is meant")
    add("--ks", type=numbers, default=list(range(1, 9)), help="part stream: the others too")
    add("--prompts", type=int, default=8)
    add("--repeats", type=int, default=1)
    add("--other-prompts", type=int, default=4, help="part stream: prompts for each other K")
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=512)
    add("--batches", type=numbers, default=[1, 8, 32])
    add("--contexts", type=numbers, default=[128, 2048, 16384])
    add("--parts-ks", type=numbers, default=[0, 1, 3, 5, 8])
    add("--graph-repeats", type=int, default=12, help="timed replays of each graph")
    add("--curve-contexts", type=numbers, default=[128, 2048])
    add("--most-tokens", type=int, default=288, help="part curve: most tokens of a pass")
    add("--host-rounds", type=int, default=500)
    add("--guarded-rounds", type=int, default=100)
    add("--check-contexts", type=numbers, default=[128, 2048, 16384])
    add("--check-tokens", type=int, default=64, help="part check: tokens behind each context")
    add("--text-prompts", type=int, default=6, help="part check: prompts of the text comparison")
    add("--text-tokens", type=int, default=256, help="part check: tokens of each")
    add("--capture-rounds", type=int, default=10000)
    add("--mini-texts", default="", help="part mini: the file that gpu_mini_texts.py wrote")
    add("--mini-prompts", type=int, default=12, help="part mini: prompts timed in bfloat16")
    add("--startup-requests", type=int, default=100)
    add("--startup-slots", type=int, default=4)
    add("--startup-limit", type=float, default=150.0, help="part startup: seconds of a process")
    add("--part-limit", type=float, default=420.0, help="seconds of one part, then it is ended")
    add("--rate", type=float, default=REFERENCE_RATE, help="bytes a second; part bandwidth sets it")
    add("--one-process", action="store_true", help="run the parts in this process")
    options = parser.parse_args()
    if options.small:
        vars(options).update(SMALL)
    chosen = list(PARTS) if options.parts == "all" else options.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "mini" in chosen and not options.mini_texts:
        parser.error("part mini needs --mini-texts, a file that gpu_mini_texts.py wrote")
    options.parts = [name for name in PARTS if name in chosen]
    return options


def machine(bench: Bench) -> dict[str, Any]:
    """The device and the versions."""
    result: dict[str, Any] = {"system": platform.system(), "python": platform.python_version()}
    result |= {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        import triton

        result["triton"] = triton.__version__
    except ImportError:
        result["triton"] = None
    if bench.cuda:
        about = torch.cuda.get_device_properties(bench.device)
        result |= {"device": about.name, "multiprocessors": about.multi_processor_count}
        result |= {"memory_gib": digits(about.total_memory / 2**30), "cuda": torch.version.cuda}
    return result


def run(bench: Bench, name: str) -> dict[str, Any]:
    """One part's figures, or what went wrong."""
    say(f"part {name}")
    began = time.perf_counter()
    try:
        result = PARTS[name](bench)
    except Exception as error:
        say(traceback.format_exc())
        result = {"error": repr(error)[:2000]}
    try:
        free(bench)
        if bench.cuda:
            result["peak_gib"] = digits(torch.cuda.max_memory_allocated(bench.device) / 2**30)
            torch.cuda.reset_peak_memory_stats(bench.device)
    except Exception as error:
        result["error_after"] = repr(error)[:2000]
    result["part_seconds"] = digits(time.perf_counter() - began, 4)
    say(f"part {name} took {result['part_seconds']} s")
    return result


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that matter most, for the last line."""
    parts = results["parts"]
    short: dict[str, Any] = {"benchmark": "gpu_round", "machine": results["machine"]}
    short["errors"] = {n: p["error"][:200] for n, p in parts.items() if "error" in p}
    short["seconds"] = {name: part["part_seconds"] for name, part in parts.items()}
    keep = ("tok_s", "share", "share_at_reference", "round_ms", "ttft_ms", "tokens_per_round",
            "acceptance_rate", "identical", "error")  # fmt: skip
    for name, part in parts.items():
        if name == "stream":
            rows = {k: v for k, v in part.items() if isinstance(v, dict)}
            short[name] = {k: {x: v[x] for x in keep if x in v} for k, v in rows.items()}
        elif name == "parts" and "points" in part:
            short[name] = [
                [p["batch"], p["context"], p["k"], p.get("verify_ms"), p.get("draft_ms"),
                 p.get("round", {}).get("share"), p.get("accept_us")]
                for p in part["points"]
            ]  # fmt: skip
        elif name in ("curve", "profile"):
            short[name] = {"points": len(part.get("points", part.get("kernels", ())))}
        else:
            short[name] = part.get("summary", _plain(part))
    return short


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in part.items() if len(json.dumps(v)) < 600}


def apart(options: argparse.Namespace, name: str, rate: float) -> dict[str, Any]:
    """One part in a process of its own; what it had so far where it came to no end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--parts", name, "--one-process"]
        command += ["--out", str(out), "--rate", str(rate)]
        began, error = time.perf_counter(), None
        try:
            code = subprocess.run(
                command, stdout=subprocess.DEVNULL, timeout=options.part_limit, check=False
            ).returncode
            error = f"the process ended with {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"ended after {options.part_limit:g} s"
        result: dict[str, Any] = {}
        if out.exists():
            result = json.loads(out.read_text(encoding="utf-8"))["parts"].get(name, {})
    if error is not None and "error" not in result:
        result["error"] = error
        say(f"part {name}: {error}")
    result.setdefault("part_seconds", digits(time.perf_counter() - began, 4))
    return result


def main() -> None:
    """Run the parts and print the result."""
    options = parse()
    os.environ.setdefault(BEGAN, str(time.time()))
    bench = Bench(options, torch.device(options.device), options.rate)
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    settings |= {name: "/".join(Path(settings[name]).parts[-2:]) for name in ("target", "draft")}
    settings["mini_texts"] = Path(options.mini_texts).name
    parts: dict[str, Any] = {}
    results: dict[str, Any] = {
        "benchmark": "gpu_round",
        "settings": settings,
        "machine": machine(bench),
        "reference_rate": REFERENCE_RATE,
        "parts": parts,
    }

    def save() -> None:
        if options.out:
            written = options.out.with_suffix(".part")
            written.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            written.replace(options.out)

    for name in options.parts:

        def keep(result: dict[str, Any], name: str = name) -> None:
            parts[name] = result | {"unfinished": True}
            save()

        bench.keep = keep
        if options.one_process:
            parts[name] = run(bench, name)
        else:
            parts[name] = apart(options, name, bench.rate)
            bench.rate = parts[name].get("rate_used", bench.rate)
        save()
    print(json.dumps(summary(results)))
    if any("error" in part for part in parts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
