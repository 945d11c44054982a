"""The requests that were finished, in a file: to bench with, and to plan with.

A line a request: `{"at": seconds, "prompt_tokens": n, "new_tokens": n, "body": {…}}`. It holds
prompts, so only its owner may read it. A thread of its own writes; where it does not keep up, lines
are left out, and no request waits.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from pathlib import Path

from paceline import ConfigError
from paceline.server.generation import Generation
from paceline.server.record import log, tell

_WAITING = 64 << 20  # bytes of bodies that may wait to be written


class TrafficFile:
    """Open from the start of a server to its end."""

    def __init__(self, file: Path, most: int) -> None:
        """file: a new one; most: bytes that it may have. Raises ConfigError."""
        try:
            number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"record {file}: {reason}; name a new file") from error
        self._stream = os.fdopen(number, "wb")
        self._began, self._most, self._size = time.monotonic(), most, 0
        self._lock, self._waiting, self._left_out = threading.Lock(), 0, 0
        self._lines: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="paceline-record", daemon=True)
        self._thread.start()
        fields = {"file": str(file), "limit_mib": most >> 20, "warning": "it will hold prompts"}
        log.warning("recording", extra={"fields": fields})

    def take(self, body: bytes, generation: Generation) -> None:
        """Keep a request whose texts came to their ends. body: as it came, JSON."""
        texts = generation.texts
        new = sum(text.tokens for text in texts)
        if not new or any(text.finish not in ("stop", "length") for text in texts):
            return
        with self._lock:
            if self._waiting + len(body) > _WAITING:
                self._left_out += 1
                return
            self._waiting += len(body)
        counts = {
            "at": round(max(0.0, generation.began - self._began), 6),
            "prompt_tokens": generation.ask.prompt_tokens,
            "new_tokens": new,
        }
        self._lines.put((json.dumps(counts).encode(), body))

    def close(self) -> None:
        """Write what waits, and end."""
        self._lines.put(None)
        self._thread.join()

    def _write(self) -> None:
        with self._stream as stream:
            why = ""
            while (item := self._lines.get()) is not None:
                counts, body = item
                with self._lock:
                    self._waiting -= len(body)
                if why:
                    continue
                # In JSON a line's end stands between values only.
                line = b'%s, "body": %s}\n' % (counts[:-1], body.translate(_ONE_LINE))
                self._size += len(line)
                try:
                    if self._size <= self._most:
                        stream.write(line)
                        stream.flush()
                    else:
                        why = "it has its size"
                except OSError as error:
                    why = error.strerror or str(error)
                if why:
                    tell("recording ended", reason=why)
            if self._left_out:
                tell("recording left out", requests=self._left_out)


_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")
