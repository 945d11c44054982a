"""What a device has free, and the error when that is too little for what is to be opened."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from paceline.errors import CheckpointError, ConfigError
from paceline.types import MemoryPart

_GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on `device`; on a CPU the container's limit counts too.

    Raises ConfigError for a CUDA device that is not there.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device here; use device cpu")
        collect(device)
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit = _container_free(Path("/sys/fs/cgroup"))
    return free if limit is None else min(free, limit)


def collect(device: torch.device) -> None:
    """Have what nobody uses any more count as free on a GPU; torch keeps it otherwise."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def total(parts: Sequence[MemoryPart]) -> int:
    """Bytes of all parts."""
    return sum(part.size for part in parts)


def describe(parts: Sequence[MemoryPart]) -> str:
    """The parts in GiB, as in `target weights 14.96, target cache 2.00`."""
    return ", ".join(f"{part.name} {part.size / _GIB:.2f}" for part in parts)


def too_little(
    what: str, parts: Sequence[MemoryPart], free: int, device: torch.device, remedy: str
) -> CheckpointError:
    """The error that says what each part takes, what is free, and what to do."""
    return CheckpointError(
        f"{what} does not fit: it needs {total(parts) / _GIB:.2f} GiB ({describe(parts)}) and "
        f"{device} has {free / _GIB:.2f} GiB free; {remedy}"
    )


def _container_free(group: Path) -> int | None:
    """What a cgroup v2 limit leaves, counting file cache as free; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    stat = {key: int(value) for key, value in (line.split() for line in lines)}
    return limit - used + stat.get("inactive_file", 0) + stat.get("active_file", 0)
