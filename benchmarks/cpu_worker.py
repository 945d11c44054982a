"""The protocol of a contestant's process: one JSON object a line on its stdin and stdout.

A request is {"op": "open" | "run", …}, an answer {"ok": true, …} or {"ok": false, "error": …}.
Between requests the process blocks in a read, so nothing of it runs while another is timed. Uses
the standard library alone, because the OpenVINO process has another environment.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Run:
    """One generated text. Seconds are wall clock of the generation loop, the prompt included.

    first_seconds: until the first piece of text; first_tokens: tokens in it. rounds: target
    passes that committed tokens. Draft counts are None where the engine does not tell.
    """

    ids: list[int]
    seconds: float
    first_seconds: float | None
    first_tokens: int
    rounds: int
    drafted: int | None = None
    evaluated: int | None = None
    accepted: int | None = None


class Stamps:
    """When each piece of a text came, and how many tokens it held."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.pieces: list[tuple[float, int]] = []

    def run(self, ids: list[int], ended: float) -> Run:
        """Return the run that ended at `ended`."""
        first = self.pieces[0] if self.pieces else None
        return Run(
            ids=ids,
            seconds=ended - self.began,
            first_seconds=None if first is None else first[0] - self.began,
            first_tokens=0 if first is None else first[1],
            rounds=len(self.pieces),
        )


class Contestants(Protocol):
    """What one process implements."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the models; return versions, threads and whatever is worth noting."""
        ...

    def run(self, request: dict[str, Any]) -> Run:
        """Write one text: request has name, k, ids, max_tokens, ignore_eos."""
        ...


def serve(make: Callable[[], Contestants]) -> None:
    """Answer requests until standard input ends."""
    # What libraries print must not mix with the answers: they get standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    contestants = make()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "open":
                answer = contestants.open(request)
            else:
                gc.collect()
                answer = asdict(contestants.run(request))
            answer = {"ok": True, **answer}
        except Exception as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            answer = {"ok": False, "error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
