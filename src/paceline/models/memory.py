"""Whether weights fit: what a device has free, and the error when that is too little."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from paceline.errors import CheckpointError, ConfigError

_GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on `device`; on a CPU the container's limit counts too.

    Raises ConfigError for a CUDA device that is not there.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device here; use device cpu")
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit = _container_free(Path("/sys/fs/cgroup"))
    return free if limit is None else min(free, limit)


def check_memory(
    path: Path, weights: int, extra: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise CheckpointError if `weights` + `extra` bytes are not free on `device`."""
    free = free_bytes(device)
    if weights + extra <= free:
        return
    smaller = "dtype bfloat16, " if dtype.itemsize > 2 else ""
    raise CheckpointError(
        f"{path} needs {(weights + extra) / _GIB:.1f} GiB ({weights / _GIB:.1f} of weights) and "
        f"{device} has {free / _GIB:.1f} GiB free; use {smaller}a smaller model, a shorter "
        "context or another device"
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
