"""The round on a GPU: its time, what bounds it, whether its text is right. See README.md.

Measures on one device, part by part (`--parts`), each in a process of its own, so that one that
fails, hangs or breaks the device's context leaves the others alone. The JSON is written to --out
after each part; the last line of stdout is its summary.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import gpu_capture
import gpu_check
import gpu_graphs
import gpu_host
import gpu_speed
from gpu_common import REFERENCE_RATE
from harness import Job, Parts, add_options, choose_parts, measure, numbers, shrink

PARTS: Parts = {
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
    "guarded_rounds": 3, "capture_requests": 8, "mini_prompts": 2, "check_contexts": [24],
    "check_tokens": 8, "text_prompts": 2, "text_tokens": 12, "startup_requests": 6,
    "eager_shares": 2,
}  # fmt: skip


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 420.0)
    add("--target", default="mini-target", help="checkpoint folder of the (calibrated) target")
    add("--draft", default="mini-draft", help="checkpoint folder of its draft")
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
    add("--capture-requests", type=int, default=1200, help="some nine rounds each")
    add("--eager-shares", type=int, default=8, help="part capture: processes beside the recorded")
    add("--mini-texts", default="", help="part mini: the file that gpu_mini_texts.py wrote")
    add("--mini-prompts", type=int, default=12, help="part mini: prompts timed in bfloat16")
    add("--startup-requests", type=int, default=100)
    add("--startup-slots", type=int, default=4)
    add("--startup-limit", type=float, default=150.0, help="part startup: seconds of a process")
    add("--rate", type=float, default=REFERENCE_RATE, help="bytes a second; part bandwidth sets it")
    options = parser.parse_args()
    shrink(options, SMALL)
    choose_parts(parser, options, PARTS)
    if "mini" in options.parts and not options.mini_texts:
        parser.error("part mini needs --mini-texts, a file that gpu_mini_texts.py wrote")
    return options


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


def main() -> None:
    """Run the parts and print the result."""
    measure(Job("gpu_round", __file__, PARTS, summary, passed={"rate_used": "--rate"}), parse())


if __name__ == "__main__":
    main()
