"""The process that part `startup` of `gpu_round.py` times. Options as JSON on standard input; the
last line is JSON: when it started, had imported and was ready (time.time()), the seconds after
that import at which each step of the opening began and ended, what was reckoned to be needed of
the device's memory and what was taken, and every TTFT."""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402

from paceline import Engine, SamplingParams  # noqa: E402


def main() -> None:
    """Open the pair and write a short text for each prompt."""
    imported = time.time()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("paceline").addHandler(handler)
    logging.getLogger("paceline").setLevel(logging.INFO)
    steps: dict[str, list[float]] = {}

    def progress(what: str, done: int, count: int) -> None:
        now = round(time.time() - imported, 2)
        steps[what] = [steps.get(what, [now])[0], now]

    options = json.load(sys.stdin)
    prompts = options.pop("prompts")
    # Some tokens more than the one that is timed: without any draft that can be tested the drafter
    # would rest, and later prompts would not be read for it.
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    with Engine(progress=progress, **options) as engine:
        ready = time.time()
        told = {"steps_s": steps, "reckoned_bytes": engine.memory, "log": lines,
                "max_length": engine.limits.max_length}  # fmt: skip
        if torch.cuda.is_available():
            told["most_reserved_bytes"] = torch.cuda.max_memory_reserved()
            told["free_bytes"], told["device_bytes"] = torch.cuda.mem_get_info()
        times = []
        for prompt in prompts:
            began = time.perf_counter()
            events = engine.stream(prompt, params)
            next(events)
            times.append(time.perf_counter() - began)
            for _ in events:
                pass
    told |= {"started": STARTED, "imported": imported, "ready": ready, "ttft": times}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
