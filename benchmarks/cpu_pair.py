"""Time paceline, transformers and OpenVINO GenAI on one pair of models, interleaved in one run.

Same prompts (held-out, drawn by --seed), greedy, batch 1, same number of new tokens and the same
end, same threads and dtype, each engine in a process of its own that sleeps while another is
timed. Texts are compared within the run. Progress on stderr; the last line of stdout is JSON.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import cpu_contestants as field
import cpu_figures as figures
import psutil
from cpu_arena import Arena, draw, measure, say
from cpu_contestants import ContestantError
from cpu_report import report

from paceline import PacelineError
from paceline.models.loading import resolve
from paceline.text import Tokenizer

QUIET = 0.15  # busy cores beside the contestants above which figures are not to be trusted


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--target", default="mini-target", help="checkpoint folder or bundled model")
    add("--draft", default="mini-draft", help="checkpoint folder or bundled model")
    add("--k", default="4,5,6", help="draft lengths, comma between")
    add("--dtype", default="bfloat16", help="bfloat16, float32 or both, comma between")
    add("--prompts", type=int, default=16, help="how many of the held-out prompts")
    add("--repeats", type=int, default=3, help="timed repeats of each prompt")
    add("--warmup", type=int, default=2, help="prompts that each contestant writes untimed")
    add("--max-tokens", type=int, default=256, help="a text's most new tokens")
    add("--stop", choices=("natural", "eos", "fixed"), default="natural",
        help="natural: as many tokens as paceline's plain text takes to its function's end, for "
        "all; eos: at the end of the sequence; fixed: --max-tokens, whatever comes")  # fmt: skip
    add("--seed", type=int, default=0, help="draws prompts, order and bootstrap")
    add("--threads", type=int, help="default: what paceline measures at its start")
    add("--openvino", metavar="PYTHON", help="interpreter of the OpenVINO environment")
    add("--only", default="", help="groups beside paceline's: transformers, assisted, openvino")
    add("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args()
    try:
        options.k = sorted({int(k) for k in options.k.split(",")})
    except ValueError:
        parser.error("--k must be whole numbers with commas between, for instance 4,5,6")
    options.dtype = options.dtype.split(",")
    options.only = options.only.split(",") if options.only else []
    known = set().union(*field.GROUPS.values())
    if wrong := set(options.only) - known:
        parser.error(f"--only: {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    if options.k[0] < 1 or min(options.prompts, options.repeats, options.max_tokens) < 1:
        parser.error("--k, --prompts, --repeats and --max-tokens must be 1 or more")
    if unknown := set(options.dtype) - set(field.CACHES):
        parser.error(f"--dtype: {', '.join(unknown)}; there are bfloat16 and float32")
    return options


def main() -> None:
    """Run every dtype and print the result."""
    options = parse()
    tokenizer = Tokenizer.load(resolve(options.target))
    load, began = os.getloadavg(), time.time()
    runs: dict[str, Any] = {}
    for dtype in options.dtype:
        arena = Arena(options, dtype, tokenizer.eos_ids[0])
        try:
            arena.open()
            prompts = draw(options, arena, tokenizer)
            runs[dtype] = report(options, arena, prompts, measure(options, arena, prompts))
        finally:
            arena.close()
    beside = max(run["other_busy_cores"] for run in runs.values())
    if beside > QUIET:
        say(f"warning: {beside:.2f} cores were busy beside the contestants; time this again alone")
    plain = {dtype: run["contestants"]["paceline plain"]["tok_s"] for dtype, run in runs.items()}
    judged = max(plain, key=lambda dtype: plain[dtype] or 0.0)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "openvino")}
    settings |= {role: Path(settings[role]).name for role in ("target", "draft")}
    result = {
        "benchmark": "cpu_pair",
        "judged_dtype": judged,
        "judged_on": "writing",
        "identical": runs[judged]["identical"],
        "quiet": beside <= QUIET,
        "claims": {
            name: {
                "aim": claim["aim"], "met": claim["met"],
                "met_prompt_included": claim["met_prompt_included"],
                **{
                    label: {key: claim.get(label, {}).get(key) for key in ("ratio", "interval")}
                    for label in ("writing", "prompt_included")
                },
                "first_token_ms": claim["first_token_ms"],
            }
            for name, claim in runs[judged]["claims"].items()
        },
        "settings": settings,
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": figures.rounded(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "load_before": [figures.rounded(x, 2) for x in load],
        "load_after": [figures.rounded(x, 2) for x in os.getloadavg()],
        "seconds": figures.rounded(time.time() - began, 1),
        "runs": runs,
    }  # fmt: skip
    line = json.dumps(result, ensure_ascii=False)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(line)
    if not all(run["identical"] for run in runs.values()):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except (ContestantError, PacelineError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
