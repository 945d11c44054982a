"""The contestants of cpu_pair.py: who runs, in which process, from which converted checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
GROUPS = {"transformers": {"transformers", "assisted"}, "openvino": {"openvino"}}
CACHES = {"bfloat16": ("default", "bf16"), "float32": ("default", "f32")}


class ContestantError(RuntimeError):
    """A contestant's process could not do what it was asked."""


class EngineGoneError(ContestantError):
    """A contestant's process has ended."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to write a text. request: what its process needs to know beside prompt and limit.

    group: what it stands for in the claims.
    """

    name: str
    engine: str
    group: str
    request: dict[str, Any]


@dataclass(slots=True)
class Engine:
    """A contestant process that answers JSON lines; see cpu_worker.py."""

    name: str
    python: str
    script: str
    info: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None
    _usage: psutil.Process | None = None

    def start(self) -> None:
        """Start the process; its log goes to standard error."""
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OPENVINO_TELEMETRY_OPT_OUT": "1",
        }
        self._process = subprocess.Popen(
            [self.python, str(HERE / self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._usage = psutil.Process(self._process.pid)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises ContestantError."""
        assert self._process is not None
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineGoneError(f"{self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise ContestantError(f"{self.name}: {answer['error']}")
        return answer

    def cpu_seconds(self) -> float:
        """Return the CPU time the process has used."""
        assert self._usage is not None
        try:
            times = self._usage.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def stop(self) -> None:
        """End the process by closing its input."""
        if self._process is None:
            return
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def paceline(ks: Sequence[int]) -> list[Contestant]:
    """Return plain decoding and one contestant for each draft length."""
    plain = Contestant("paceline plain", "paceline", "plain", {"k": 0})
    return [plain] + [
        Contestant(f"paceline k={k}", "paceline", "speculative", {"k": k}) for k in ks
    ]


def transformers(ks: Sequence[int]) -> list[Contestant]:
    """Return plain `generate`, assisted with its own defaults, and with each draft length."""
    plain = Contestant(
        "transformers plain", "transformers", "transformers", {"mode": "plain", "k": 0}
    )  # fmt: skip
    assisted = [("default", 0)] + [(f"k={k}", k) for k in ks]
    return [plain] + [
        Contestant(
            f"transformers assisted {label}", "transformers", "assisted",
            {"mode": "assisted", "k": k},
        )
        for label, k in assisted
    ]  # fmt: skip


def openvino(ks: Sequence[int], dtype: str) -> tuple[list[Contestant], list[dict[str, Any]]]:
    """Return the contestants and the pipelines they need.

    Plain on both attention back ends, speculative on the only one that has it (paged); each with
    the key-value cache as the engine chooses it and in the dtype that is timed.
    """
    contestants, pipelines = [], []
    for cache in CACHES[dtype]:
        for backend, speculative in (("PA", False), ("SDPA", False), ("PA", True)):
            label = {"PA": "paged", "SDPA": "sdpa"}[backend]
            name = f"openvino {label} kv={cache}"
            key = name + (" speculative" if speculative else "")
            pipelines.append(
                {"key": key, "backend": backend, "kv": cache, "speculative": speculative}
            )
            contestants += [
                Contestant(
                    f"{name} k={k}" if speculative else name, "openvino", "openvino",
                    {"key": key, "k": k},
                )
                for k in (ks if speculative else (0,))
            ]  # fmt: skip
    return contestants, pipelines


def engines(python: str | None) -> dict[str, Engine]:
    """Return the processes, not yet started."""
    made = {
        name: Engine(name, sys.executable, f"cpu_worker_{name}.py")
        for name in ("paceline", "transformers")
    }
    if python is not None:
        made["openvino"] = Engine("openvino", python, "cpu_worker_openvino.py")
    return made


def convert(python: str, checkpoint: Path) -> Path:
    """Return the checkpoint as OpenVINO reads it, converted once and kept in a temporary folder.

    Weights are written as float32, which holds every bfloat16 value; the dtype that is timed is
    chosen when the model is compiled. Raises ContestantError.
    """
    files = sorted(p for p in checkpoint.iterdir() if p.suffix in (".json", ".safetensors"))
    digest = hashlib.sha256((HERE / "requirements-openvino.txt").read_bytes())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    folder = Path(tempfile.gettempdir()) / "paceline-openvino" / digest.hexdigest()[:16]
    if (folder / "openvino_model.xml").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [
            python, "-m", "optimum.commands.optimum_cli", "export", "openvino",
            "--model", str(checkpoint), "--task", "text-generation-with-past",
            "--weight-format", "fp32", str(Path(scratch) / "model"),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ContestantError(f"conversion failed: {last}")
        (Path(scratch) / "model").rename(folder)
    return folder
