"""How many CPU threads a forward pass should use: measured, not assumed.

A busy core makes two threads many times slower than one, and small models gain little from more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import psutil
import torch

_REPEATS = 15
_SECONDS = 0.6


def choose_threads(work: Callable[[], object]) -> int:
    """Time `work` with 1, 2, 4 … threads up to the number of cores; set and return the fastest.

    Takes about a second. Stops early where more threads are slower.
    """
    cores = psutil.cpu_count(logical=False) or torch.get_num_threads()
    candidates = sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)})
    times: dict[int, float] = {}
    for threads in candidates:
        times[threads] = _median_time(work, threads)
        if times[threads] > 1.2 * min(times.values()):
            break
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    return best


def _median_time(work: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    work()  # the first call builds kernels for this number of threads
    samples: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(samples) < _REPEATS and (not samples or time.perf_counter() < end):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)
