"""Which GPU a CUDA device is, and what NVML tells of it: its name and its energy.

CUDA numbers what CUDA_VISIBLE_DEVICES leaves, in an order of its own. NVML ignores that variable
and numbers all there is, in the order of the bus, so the one's number is not the other's. Where it
is not clear which GPU is meant nothing is told: it could be another's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def ordinal(device: str) -> int | None:
    """CUDA's number of a device that is named as torch does, or None where it names none."""
    kind, _, number = device.partition(":")
    return int(number or "0") if kind == "cuda" and (number or "0").isdecimal() else None


def names() -> dict[int, str]:
    """The GPUs' names by CUDA's number, of those that are clear. Needs no torch and no context."""
    try:
        nvml = _nvml()
        return {n: _name(nvml, one) for n, one in enumerate(_visible(nvml)) if one is not None}
    except Exception:  # no driver, no device, no package: it has an error for each
        return {}


def used(device: str) -> dict[str, str]:
    """The GPU that this process computes on, as a fact of an opening; empty where there is none."""
    number, torch = ordinal(device), _torch()
    if number is None or torch is None:
        return {}
    return {"gpu": str(torch.cuda.get_device_name(number))}


def energy(device: str) -> Callable[[], float] | None:
    """What reads the joules that a CUDA device of this process has used, from some moment on. None
    where it is not clear which GPU that is. Raises NVML's errors, and so does the reading."""
    number, nvml = ordinal(device), _nvml()
    gpu = _handle(nvml, number) if number is not None else None
    if gpu is None:
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _torch() -> Any:
    """torch, where this process computes by it on CUDA; never the one to initialise either."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _handle(nvml: Any, number: int) -> Any:
    torch = _torch()
    if torch is not None:
        uuid = torch.cuda.get_device_properties(number).uuid
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    found = _visible(nvml)
    return found[number] if number < len(found) else None


def _visible(nvml: Any) -> list[Any]:
    """Handles in the order of CUDA's numbers, as far as the environment tells; None for one that is
    not clear."""
    present = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    # CUDA puts the fastest first unless told otherwise, and like ones in the order of the bus.
    like = len({_name(nvml, gpu) for gpu in present}) <= 1
    sure = like or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    ordered: list[Any] = present if sure else [None] * len(present)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return ordered
    entries = [entry.strip() for entry in chosen.split(",")]
    if len(set(entries)) < len(entries):
        return []  # CUDA shows nothing then
    found: list[Any] = []
    for entry in entries:
        same = [gpu for gpu in present if _text(nvml.nvmlDeviceGetUUID(gpu)).startswith(entry)]
        if entry.startswith("MIG-"):
            found.append(None)  # a part of a GPU, and what is counted is the whole of it
        elif entry.startswith("GPU-") and len(same) == 1:
            found += same
        elif entry.isdecimal() and int(entry) < len(ordered):
            found.append(ordered[int(entry)])
        else:
            break  # as CUDA does: what comes behind an entry that names nothing is not seen
    return found


def _name(nvml: Any, gpu: Any) -> str:
    return _text(nvml.nvmlDeviceGetName(gpu))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
