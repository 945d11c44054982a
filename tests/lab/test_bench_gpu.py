"""Which GPU's energy and name are told: the one that the contestant computes on, or none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lab.bench_tools import contestant, measurement, write_run

from paceline.lab.bench_figures import summarize
from paceline.lab.bench_gpu import used
from paceline.lab.bench_machine import Meter, machine
from paceline.lab.bench_record import Opening
from paceline.lab.report import head

UUIDS = ("GPU-aaaa0000-1", "GPU-aabb0000-2", "GPU-cccc0000-3")


class Nvml(ModuleType):
    """NVML of a machine with three GPUs; number n uses n + 1 joules from look to look."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("pynvml")
        self.names, self.looks = names, 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return UUIDS.index(uuid)  # an error where there is no such one, as NVML has

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return UUIDS[gpu]

    def nvmlDeviceGetName(self, gpu: int) -> bytes:
        return self.names[gpu].encode()

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        self.looks += 1
        return 1000 * (gpu + 1) * self.looks


@pytest.fixture(autouse=True)
def like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs of one model, all visible."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(("H200",) * 3))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(("A2", "H200", "L4")))


def joules(device: str) -> float | None:
    return Meter(contestant("fast", options={"device": device})).joules()


@pytest.mark.parametrize(
    ("visible", "device", "used"),
    [
        (None, "cuda", 1.0),
        (None, "cuda:2", 3.0),
        (None, "cuda:3", None),
        ("2", "cuda", 3.0),
        ("2, 1", "cuda:1", 2.0),
        ("GPU-aabb0000-2", "cuda:0", 2.0),
        ("GPU-cc,GPU-aabb", "cuda:1", 2.0),
        ("GPU-aa", "cuda", None),  # two begin like this
        ("MIG-aaaa0000-1", "cuda", None),
        ("1,-1,2", "cuda:1", None),
        ("1,1", "cuda", None),
        ("", "cuda", None),
    ],
)
def test_joules_are_of_the_visible_device(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, used: float | None
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert joules(device) == used


def test_unlike_gpus_have_a_number_only_in_the_order_of_the_bus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlike(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert joules("cuda") is None
    assert "gpu 0" not in machine()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert joules("cuda") == 2.0
    assert machine()["gpu 0"] == "H200"
    assert "gpu 1" not in machine()


@pytest.mark.parametrize(("uuid", "joules_"), [("aabb0000-2", 2.0), ("dddd0000-4", None)])
def test_torchs_own_word_counts_where_it_computes_by_cuda(
    monkeypatch: pytest.MonkeyPatch, uuid: str, joules_: float | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=uuid)
    )
    assert joules("cuda") == joules_


def test_looking_never_initialises_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("CUDA was asked")

    for name in ("init", "_lazy_init", "get_device_properties", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, never)
    assert joules("cuda:1") == 2.0
    assert machine()["gpu 2"] == "H200"
    assert used("cuda:1") == {}


def test_the_reports_head_names_the_gpus_that_were_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ("H200", "L4")[number])
    one, other = (contestant(n, options={"device": d}) for n, d in (("a", "cuda:1"), ("b", "cpu")))
    run = write_run(
        tmp_path, [one, other], [measurement(one), measurement(other)],
        openings=[Opening(c, facts=used(c.options["device"])) for c in (one, other)],
    )  # fmt: skip
    summary = summarize(run)
    assert "abacus, 2 cores, L4</p>" in str(head(summary, "title"))
    summary.machine.update({"gpu 0": "A2", "gpu 1": "H200"})
    summary.openings[0].facts.clear()  # as in records from before it was told
    assert "abacus, 2 cores, H200</p>" in str(head(summary, "title"))
