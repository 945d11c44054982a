"""What holds for every test: no network, one torch thread, no leftover environment."""

from __future__ import annotations

import os
import tempfile

# Before torch and huggingface_hub are imported, which read these once. One thread a process: the
# suite runs several processes side by side, and a busy core makes OpenMP spin.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PACELINE_CACHE"] = os.path.join(tempfile.gettempdir(), "paceline-tests")

import contextlib
import importlib
import pkgutil
import random
import secrets
import socket
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import paceline

torch.set_num_threads(1)

# Without a GPU, Triton kernels run in its interpreter: a flag that is read when they are made.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shared machine is slow at times: no deadline, and a slow draw is no failure. The examples are
# the same on every run, so that a red suite is red for everyone; hypothesis also draws constants of
# whatever modules are loaded, so all are.
for _module in pkgutil.walk_packages(paceline.__path__, "paceline."):
    if not _module.name.endswith("__main__"):
        with contextlib.suppress(ImportError):  # there is no Triton here, say
            importlib.import_module(_module.name)
settings.register_profile(
    "paceline", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("paceline")

# Nor does the device that a test means depend on the machine: those of a GPU name it.
if torch.cuda.is_available():
    paceline.config.choose = lambda dtype: "cpu"  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves the machine."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "local"
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to connect to {host}: tests need no network")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def _same_seeds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed draw the same ones on every run, for the reason above."""
    monkeypatch.setattr(secrets, "randbits", random.Random(request.node.nodeid).getrandbits)
