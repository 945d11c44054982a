"""Kernels compiled side by side before they are needed, instead of one by one when they are.

Triton compiles a kernel at its first launch, and the next launch waits. Here a rehearsal runs
first: what would have to be compiled is noted and not launched, and then compiled by threads. (Not
meanwhile: they and the rehearsal would wait for Python's lock in turns.) What triton's cache holds
is loaded by the rehearsal's own thread, for the same reason: it is Python's work, and 32 threads
took ten times as long. What a rehearsal leaves unwritten is 0, so that whatever reads it as an
index stays inside.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)

_MOST_THREADS = 32
_ALONE = threading.Lock()


class _Absent(Exception):
    """Triton's cache does not hold the kernel."""


class Rehearsal:
    """Collects kernels. loaded, compiled: how many were, once the block has ended."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.loaded = self.compiled = 0
        self._thread = threading.get_ident()
        self._asked: dict[tuple[int, str], Callable[[], Any]] = {}

        # Triton compiles for a thread's current device, and "cuda" alone names none.
        current = torch.cuda.current_device() if device.type == "cuda" else 0
        index = current if device.index is None else device.index

        def begin() -> None:
            if device.type == "cuda":
                torch.cuda.set_device(index)

        self._pool = ThreadPoolExecutor(threads, "paceline-compile", begin)

    def hook(
        self, *, key: str, fn: Any, compile: dict[str, Any], is_manual_warmup: bool, **_: object
    ) -> bool:
        """Triton's, called where a kernel is not compiled yet: True compiles and launches none."""
        if is_manual_warmup or threading.get_ident() != self._thread:
            return False  # a thread of ours, which compiles it, or somebody else's launch
        which = id(fn.jit_function), key
        if which not in self._asked:
            preload, data = fn.jit_function.preload, compile["specialization_data"]
            self._asked[which] = partial(preload, data)
        return True

    def finish(self) -> None:
        """Load or compile them. One that failed fails again, and is told, at its launch."""
        absent = []
        with _cached_only():
            for work in self._asked.values():
                try:
                    work()
                    self.loaded += 1
                except _Absent:
                    absent.append(work)
                except Exception as error:
                    log.debug("a kernel was not loaded ahead: %r", error)
        for future in as_completed([self._pool.submit(work) for work in absent]):
            try:
                kernel = future.result()
                try:
                    # Its launcher is a C compiler's work. Triton builds all of them under one name,
                    # so that only one thread may: this one, which would wait for the others.
                    kernel.run  # noqa: B018
                except BaseException:
                    kernel._run = None  # or its launch would find half of it
                    raise
                self.compiled += 1
            except Exception as error:
                log.debug("a kernel was not compiled ahead: %r", error)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _cached_only() -> Iterator[None]:
    """While the block runs, _Absent is raised where this thread would compile a kernel."""
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    manager: Any = knobs.cache.manager_class or FileCacheManager
    thread = threading.get_ident()

    class Looking(manager):  # type: ignore[misc]  # which class it is, triton says as it runs
        def get_group(self, filename: str) -> dict[str, str] | None:
            group: dict[str, str] | None = super().get_group(filename)
            if not group and threading.get_ident() == thread:
                raise _Absent(filename)
            return group

    with knobs.cache.scope():
        knobs.cache.manager_class = Looking
        yield


class _Zeros(TorchDispatchMode):
    """New memory is 0."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _EMPTY:
            out.zero_()
        return out


_EMPTY = (
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def compiling(device: torch.device, threads: int | None = None) -> Iterator[Rehearsal]:
    """While the block runs, a kernel that is not compiled is not launched; at its end all are.

    What the block computes is worthless, and must do no harm. threads: None takes the cores. One at
    a time in a process: Triton has one place for what is asked before a launch. Raises ImportError
    without triton.
    """
    from triton import knobs

    with _ALONE:
        yield from _compiling(knobs.runtime, device, threads)


def _compiling(runtime: Any, device: torch.device, threads: int | None) -> Iterator[Rehearsal]:
    began = time.perf_counter()
    threads = threads or min(_MOST_THREADS, _cores())
    rehearsal, before = Rehearsal(device, threads), runtime.jit_cache_hook
    runtime.jit_cache_hook = rehearsal.hook
    try:
        with _Zeros():  # type: ignore[no-untyped-call]  # torch's
            yield rehearsal
        rehearsed = time.perf_counter() - began
        rehearsal.finish()
    finally:
        runtime.jit_cache_hook = before
        rehearsal.close()
    log.info(
        "loaded %d kernels and compiled %d on %d threads in %.1f s, %.1f s of it the rehearsal",
        rehearsal.loaded,
        rehearsal.compiled,
        threads,
        time.perf_counter() - began,
        rehearsed,
    )
