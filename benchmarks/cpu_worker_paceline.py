"""Contestant process of cpu_pair.py: paceline, plain and with the draft model."""

from __future__ import annotations

import time
from typing import Any

from cpu_worker import Run, Stamps, serve

import paceline
from paceline import Engine, SamplingParams


class Paceline:
    """Two engines as users would open them: one without a drafter, one with the draft model."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open both; threads None leaves the choice to the measurement at start."""
        common = {"dtype": request["dtype"], "slots": 1, "seed": 0, "adaptive": False}
        common["device"] = "cpu"
        self.fast = Engine(
            request["target"],
            draft=request["draft"],
            k=max(request["ks"]),
            threads=request["threads"],
            **common,
        )
        threads = self.fast.threads
        self.plain = Engine(request["target"], k=0, threads=threads, **common)
        return {"threads": threads, "versions": {"paceline": paceline.__version__}}

    def run(self, request: dict[str, Any]) -> Run:
        """Stream one text and note when its pieces come."""
        k = request["k"]
        params = SamplingParams(
            max_tokens=request["max_tokens"],
            ignore_eos=request["ignore_eos"],
            stop=tuple(request.get("stop", ())),
        )
        engine = self.fast if k else self.plain
        before = _counts(engine)
        ids: list[int] = []
        stamps = Stamps(time.perf_counter())
        for event in engine.stream(request["ids"], params, k=k):
            stamps.pieces.append((time.perf_counter(), len(event.token_ids)))
            ids += event.token_ids
        run = stamps.run(ids, time.perf_counter())
        if k:
            after = _counts(engine)
            run.drafted, run.evaluated, run.accepted = (
                b - a for a, b in zip(before, after, strict=True)
            )
        return run


def _counts(engine: Engine) -> tuple[int, int, int]:
    stats = engine.stats()
    return stats.drafted, stats.evaluated, stats.accepted


if __name__ == "__main__":
    serve(Paceline)
