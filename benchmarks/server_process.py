"""`paceline serve` in a process of its own, and what it holds: memory, threads, files, figures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

MODEL = "code"
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class ServerProcess:
    """Starts the server, waits until it is ready, keeps its log, and drains it at the end."""

    options: list[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    ready_seconds: float = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "paceline", "serve", "--port", "0", "--name", MODEL]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*command, *self.options], stderr=subprocess.PIPE, env={**os.environ, "NO_PROXY": "*"}
        )
        assert self._process.stderr is not None
        told: list[bytes] = []
        while not self.url:  # a line of the log says it, maybe not the first
            told.append(self._process.stderr.readline())
            if not told[-1]:
                self._process.kill()
                sys.exit(f"the server did not start: {b''.join(told).decode()}")
            try:
                line = json.loads(told[-1])
            except ValueError:
                continue
            self.url = line.get("url", "") if isinstance(line, dict) else ""
        self.ready_seconds = time.monotonic() - began
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(json.loads(line))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(90)
        self._reader.join(10)
        return status

    def figures(self) -> dict[str, float]:
        """/metrics, a value a line."""
        with _LOCAL.open(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def figure(self, name: str) -> float:
        """The sum of a metric's samples; name may go on into its labels."""
        wanted = re.compile(rf"paceline:{name}(\{{|$)" if "{" not in name else re.escape(name))
        return sum(value for key, value in self.figures().items() if wanted.search(key))

    def holds(self) -> dict[str, Any]:
        """What the process has: bytes of memory of its own, threads, open files, sockets."""
        process = psutil.Process(self._process.pid)
        return {
            "rss_mib": round(process.memory_info().rss / 2**20, 1),
            "threads": process.num_threads(),
            "files": process.num_fds(),
            "sockets": len(process.net_connections()),
            "pages_used": self.figure('kv_cache_pages{model_name="code",state="used"}'),
        }

    def quiet(self, seconds: float = 60.0) -> bool:
        """Wait until no text is written or waits; whether it came to that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.figure("num_requests_running") + self.figure("num_requests_waiting") == 0:
                return True
            time.sleep(0.2)
        return False

    def complete(self, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
        """One request, whole."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps({"model": MODEL, **body}).encode(),
            {"content-type": "application/json"},
        )
        with _LOCAL.open(request, timeout=120) as answer:
            result: dict[str, Any] = json.load(answer)
        return result


def mini_target() -> Path:
    """The bundled model's folder."""
    import paceline

    return Path(paceline.__file__).parent / "assets" / "mini-target"
