"""What tests of the command line pass around."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    target: str
    draft: str

    @property
    def options(self) -> list[str]:
        return ["--target", self.target, "--draft", self.draft, "--dtype", "float32",
                "--device", "cpu", "--threads", "1"]  # fmt: skip


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Call = Callable[..., Done]


def one_line_error(done: Done) -> str:
    """Assert that a command ended in one `error: …` line and status 2; return the line."""
    assert done.status == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    return done.err
