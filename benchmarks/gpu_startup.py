"""The process that part `startup` of `gpu_round.py` times. Options as JSON on standard input; the
last line is JSON: when it started, had imported and was ready (time.time()), and every TTFT."""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402

from paceline import Engine, SamplingParams  # noqa: E402


def main() -> None:
    """Open the pair and write one token for each prompt."""
    imported = time.time()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("paceline").addHandler(handler)
    logging.getLogger("paceline").setLevel(logging.INFO)
    options = json.load(sys.stdin)
    prompts = options.pop("prompts")
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    with Engine(**options) as engine:
        ready = time.time()
        times = []
        for prompt in prompts:
            began = time.perf_counter()
            next(engine.stream(prompt, params))
            times.append(time.perf_counter() - began)
    told = {"started": STARTED, "imported": imported, "ready": ready, "ttft": times, "log": lines}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
