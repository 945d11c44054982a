"""Bytes of tensors from files to a device, piece by piece, reading and copying side by side.

Threads read a piece into one of two host buffers while the one before is waited for and copied; on
a GPU the buffers are pinned and the copies run on a stream of their own. Knows nothing of weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paceline.errors import CheckpointError
from paceline.models.checkpoint import Stored

_THREADS = 8
_BLOCK = 4 * 2**20  # bytes that one thread reads at a time, at least


class Carrier:
    """Brings pieces of stored tensors to `device`. Close it when everything was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = (_Buffer(device), _Buffer(device))
        self._turn = 0
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="paceline-read")
        self._files: dict[Path, int] = {}  # descriptors, open until the end
        self._being_read: _Piece | None = None

    def close(self) -> None:
        """Let the threads go. The buffers are kept until what is under way has arrived; what was
        asked for since `finish` may not have."""
        try:
            for buffer in self._buffers:
                buffer.wait()
        finally:
            self._readers.shutdown()
            while self._files:
                os.close(self._files.popitem()[1])

    def carry(
        self, stored: Stored, first: int, shape: tuple[int, ...], put: Callable[[Tensor], object]
    ) -> None:
        """Read the elements from number `first` on and hand them to put as a tensor of `shape` on
        the device, in the stored dtype; it is another's when put returns. put may be called
        later, by `finish` at the latest.

        Raises CheckpointError, also for what was asked for before, where the file ends before its
        tensor does.
        """
        buffer = self._buffers[self._turn]
        self._turn = 1 - self._turn
        size = stored.dtype.itemsize
        for length in shape:
            size *= length
        host = buffer.take(size)
        reads = self._read(stored.file, stored.start + first * stored.dtype.itemsize, host)
        before = self._being_read
        self._being_read = _Piece(reads, host.view(stored.dtype).view(shape), put, buffer)
        if before is not None:
            self._hand_on(before)

    def finish(self) -> None:
        """Work launched later on the current stream finds what every put wrote."""
        last, self._being_read = self._being_read, None
        if last is not None:
            self._hand_on(last)

    def _hand_on(self, piece: _Piece) -> None:
        for read in piece.reads:
            read.result()
        if self._side is None:
            piece.put(piece.host)
            return
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)  # where put writes to may have been another's memory
        with torch.cuda.stream(self._side):
            piece.put(piece.host.to(self._device, non_blocking=True))
            piece.buffer.sent()
        current.wait_stream(self._side)

    def _read(self, file: Path, at: int, into: Tensor) -> list[Future[None]]:
        """Begin to fill `into` [bytes] from position `at` of a file, several blocks at a time: few,
        since each waits for Python's lock once, and others may be busy under it."""
        number = self._files.get(file)
        if number is None:
            number = self._files[file] = os.open(file, os.O_RDONLY)
        step = max(_BLOCK, -(-into.numel() // _THREADS))

        def block(start: int) -> None:
            _read_block(number, file, at + start, into[start : start + step])

        if into.numel() <= step:
            block(0)
            return []
        return [self._readers.submit(block, start) for start in range(0, into.numel(), step)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is being read into a buffer, and who gets it."""

    reads: list[Future[None]]
    host: Tensor
    put: Callable[[Tensor], object]
    buffer: _Buffer


class _Buffer:
    """Host memory for one piece at a time; grows to the largest."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._event: torch.cuda.Event | None = None

    def take(self, size: int) -> Tensor:
        """`size` bytes, once the copy of what was in them is done."""
        self.wait()
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size]

    def sent(self) -> None:
        """The copy was launched on the current stream."""
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> None:
        """Wait for the copy."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None


def _read_block(number: int, file: Path, at: int, into: Tensor) -> None:
    view = into.numpy().data
    while view:
        count = os.preadv(number, [view], at)
        if not count:
            raise CheckpointError(f"{file} is truncated; download the model again")
        view, at = view[count:], at + count
