"""A user's own prompts: the file or folder that `paceline bench -w` takes."""

from __future__ import annotations

from pathlib import Path

from paceline.cli import common
from paceline.lab import workloads
from paceline.lab.workload_lines import Message


def read(source: Path) -> list[str | list[Message]]:
    """What the first text of every conversation is asked for with; a line that cannot be read is
    told and left out. Raises ConfigError where none is left."""
    work = workloads.load(str(source))
    for line in work.skipped:
        common.stderr.print(f"skipped: {line}", style="dim", markup=False, soft_wrap=True)
    return [item.opening for item in work.items]
