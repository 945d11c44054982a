"""Which device is meant where nobody names one; GPUs are faked."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest
import torch
from helpers import tiny_checkpoint

from paceline import ConfigError, Engine, EngineConfig
from paceline.models import devices
from paceline.models.devices import choose


def gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), triton: bool = True
) -> None:
    """A machine with one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    found = ModuleSpec("triton", None) if triton else None
    monkeypatch.setattr(devices, "find_spec", lambda name: found)
    monkeypatch.setattr("paceline.config.choose", choose)  # the suite's own is the CPU


@pytest.mark.parametrize(
    ("capability", "triton", "dtype", "device", "words"),
    [
        ((9, 0), True, "bfloat16", "cuda", "INFO device auto is cuda: A GPU"),
        ((8, 0), True, "bfloat16", "cuda", "INFO device auto is cuda: A GPU"),
        ((7, 5), True, "float32", "cuda", "INFO device auto is cuda: A GPU"),
        ((7, 5), True, "bfloat16", "cpu", "WARNING device auto is cpu: A GPU has compute "
         "capability 7.5 and bfloat16 needs 8.0; dtype float32 would run there"),
        ((9, 0), False, "bfloat16", "cpu", "WARNING device auto is cpu: the GPU's kernels need "
         "triton, which is not installed"),
    ],
)  # fmt: skip
def test_auto_is_a_gpu_that_can_do_it(
    capability: tuple[int, int], triton: bool, dtype: str, device: str, words: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gpu(monkeypatch, capability, triton)
    with caplog.at_level("INFO", "paceline"):
        assert EngineConfig(target="x", dtype=dtype).device == device
    assert [f"{r.levelname} {r.getMessage()}" for r in caplog.records] == [words]


def test_auto_without_a_gpu_is_the_cpu_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO", "paceline"):
        assert EngineConfig(target="x", device="auto").device == "cpu"
    assert [r.levelname for r in caplog.records] == ["INFO"]


def test_a_module_without_a_spec_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(devices, "find_spec", broken)
    assert not devices.has_triton()


def test_an_old_gpu_that_was_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("target"))
    gpu(monkeypatch, (7, 5))
    monkeypatch.setattr("paceline.engine.build.find", lambda name: 1 / 0)  # nothing is looked for
    monkeypatch.setattr("paceline.engine.engine.on_device", lambda name: torch.inference_mode)
    with pytest.raises(ConfigError) as caught:
        Engine(folder, device="cuda")
    assert str(caught.value) == (
        "device cuda: A GPU has compute capability 7.5 and bfloat16 needs 8.0; give dtype float32, "
        "or device cpu"
    )
