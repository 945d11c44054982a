"""What a run's figures depend on beside the contestants: the machine, its memory and its energy.

What the machine does not tell is absent, never estimated.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from paceline.lab import bench_gpu
from paceline.lab.bench_record import Contestant

_RAPL = Path("/sys/class/powercap")


def machine() -> dict[str, str]:
    """The machine, in words: what would have to be the same for figures to be comparable."""
    told = {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for number, name in bench_gpu.names().items():
        told[f"gpu {number}"] = name  # by CUDA's number, as contestants name their device
    return told


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# --- memory ----------------------------------------------------------------------------------


def peak_rss() -> int | None:
    """The most memory that this process has held, in bytes."""
    with suppress(OSError, ValueError):
        # Not getrusage: that counts what the process was before it became this program.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def peak_device_bytes() -> int | None:
    """The most memory that torch has held on CUDA devices, in bytes; None where it has none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.max_memory_reserved(n)) for n in range(torch.cuda.device_count()))


# --- energy ----------------------------------------------------------------------------------


class Meter:
    """Counts the energy of the contestant's device from its making on.

    A GPU's by NVML, a processor's packages by RAPL where their counters may be read. Both count the
    whole device, whoever uses it. A contestant behind an address may run anywhere: nobody counts.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.source: str | None = None
        self._gpu: Callable[[], float] | None = None
        self._start = 0.0
        self._before: dict[Path, int] = {}
        if contestant.engine == "url":
            return
        device = contestant.options.get("device", "cpu")
        if device.startswith("cuda"):
            with suppress(Exception):  # as in `bench_gpu.names`
                self._gpu = bench_gpu.energy(device)
                if self._gpu is not None:
                    self._start, self.source = self._gpu(), "NVML"
            return
        self._before = _rapl()
        if self._before:
            self.source = "RAPL"

    def joules(self) -> float | None:
        """Since the making, or None where the device does not tell."""
        if self.source == "NVML" and self._gpu is not None:
            with suppress(Exception):
                return self._gpu() - self._start
            return None
        if self.source != "RAPL":
            return None
        now_, total = _rapl(), 0.0
        for zone, before in self._before.items():
            if zone not in now_:
                return None
            used = now_[zone] - before
            if used < 0:  # the counter has begun anew
                used += int((zone / "max_energy_range_uj").read_text())
            total += used / 1e6
        return total


def _rapl() -> dict[Path, int]:
    """Microjoules of every processor package; empty where they may not be read."""
    counts: dict[Path, int] = {}
    with suppress(OSError, ValueError):
        for zone in sorted(_RAPL.glob("intel-rapl:*")):
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                counts[zone] = int((zone / "energy_uj").read_text())
    return counts
