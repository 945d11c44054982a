"""`paceline info`: what this installation and this machine have, and what a pair would be here."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.table import Table

from paceline import PacelineError, Preview, preview
from paceline.cli import common
from paceline.cli.common import Json, fail, stderr, stdout, versions, write_json

_GIB = 2**30


def info(
    json_: Json = False,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Check this model, and tell what would be served; "
                     "nothing large is downloaded or read.", rich_help_panel="A pair"),
    ] = None,
    draft: Annotated[
        str | None, typer.Option("--draft", help="With this draft.", rich_help_panel="A pair")
    ] = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", help="Texts written at once.", rich_help_panel="Models",
                     show_default="4; on a GPU up to 16"),
    ] = None,
    max_length: common.MaxLength = None,
    gpu: Annotated[
        float | None,
        typer.Option("--gpu", help="Reckon with a GPU of so many GiB free, which need not be here.",
                     rich_help_panel="A pair"),
    ] = None,
) -> None:  # fmt: skip
    """Show versions, device, threads, memory and the bundled models.

    With --target: check a model, or a pair, and show how long texts may be and what takes which
    part of the memory. Exit status 1, with the error that opening it would give, where it cannot
    be served.
    """
    asked = {"draft": draft, "dtype": dtype, "device": device, "slots": slots,
             "max_length": max_length, "gpu": gpu}  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if target is None:
        if chosen:
            fail(f"--{next(iter(chosen)).replace('_', '-')} is of a pair; give --target too")
        _show_machine(json_)
        return
    try:
        if device is not None and gpu is not None:
            fail("--gpu is a GPU that need not be here; leave --device out")
        found = preview(target, **chosen)
    except PacelineError as error:
        if json_:
            write_json({"error": str(error)})
        fail(str(error), 1)
    if json_:
        write_json(pair(found))
    else:
        _show_pair(found)


def _show_machine(json_: bool) -> None:
    found = gather()
    if json_:
        write_json(found)
        return
    table = Table.grid(padding=(0, 2))
    for name, number in found["versions"].items():
        table.add_row(name, number)
    table.add_row("device", f"{found['device']} (auto is {found['auto']})")
    for one in found["gpus"]:
        table.add_row(
            one["device"],
            f"{one['name']}, {one['memory_free_gb']} GB free of {one['memory_gb']} GB, compute "
            f"capability {one['capability']}",
        )
    table.add_row("cores", f"{found['cores']} ({found['torch_threads']} torch threads by default)")
    table.add_row("cpu", found["cpu"])
    table.add_row("memory", f"{found['memory_free_gb']} GB free of {found['memory_gb']} GB")
    models = found["models"]
    for model in models:
        table.add_row(model["name"], f"{model['kind']}, {model['megabytes']} MB")
    if not models:
        table.add_row("models", "none bundled in this installation")
    stdout.print(table)


def gather() -> dict[str, Any]:
    """Collect everything as plain values. auto: the device that it means here."""
    memory = psutil.virtual_memory()
    return {
        "versions": versions() | {"triton": _triton()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "auto": common.settled(None),
        "gpus": gpus(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(memory.total / 1e9, 1),
        "memory_free_gb": round(memory.available / 1e9, 1),
        "models": bundled(),
    }


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def gpus() -> list[dict[str, Any]]:
    """List the CUDA devices that torch sees."""
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, every = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        found.append(
            {
                "device": f"cuda:{number}",
                "name": torch.cuda.get_device_name(number),
                "memory_gb": round(every / 1e9, 1),
                "memory_free_gb": round(free / 1e9, 1),
                "capability": f"{major}.{minor}",
            }
        )
    return found


def pair(found: Preview) -> dict[str, Any]:
    """Return what would be served as plain values; memory in bytes."""
    limits, config = found.limits, found.config
    return {
        "models": [
            {
                "name": model.name, "architecture": model.architecture,
                "parameters": model.parameters, "dtype": model.dtype,
                "max_length": model.length, "downloaded": model.here, "notes": list(model.notes),
            }
            for model in found.models
        ],
        "device": str(limits.device),
        "dtype": config.dtype,
        "drafter": config.drafter,
        "slots": config.slots,
        "max_length": limits.max_length,
        "cache_tokens": limits.positions,
        "cache_texts": round(limits.texts, 2),
        "memory": dict(found.memory),
        "memory_total": sum(found.memory.values()),
        "memory_free": found.free,
    }  # fmt: skip


def _show_pair(found: Preview) -> None:
    limits, config = found.limits, found.config
    table = Table.grid(padding=(0, 2))
    for model, role in zip(found.models, ("target", "draft"), strict=False):
        size = f"{model.parameters / 1e6:,.1f} million parameters, stored as {model.dtype}"
        table.add_row(role, f"{model.name}: {model.architecture}, {size}")
    table.add_row("opened", f"as {config.dtype} on {limits.device}, drafter {config.drafter}")
    table.add_row("texts at once", f"{config.slots}")
    table.add_row("a text", f"up to {limits.max_length:,} positions, prompt included")
    table.add_row("cache", f"{limits.positions:,} positions, {limits.texts:.1f} of the longest")
    for name, size_ in found.memory.items():
        table.add_row(name, f"{size_ / _GIB:8.2f} GiB")
    whole = sum(found.memory.values())
    table.add_row("together", f"{whole / _GIB:8.2f} GiB of {found.free / _GIB:.2f} free")
    stdout.print(table, soft_wrap=True)
    for model in found.models:
        for note in model.notes:
            stderr.print(f"{model.name} {note}", style="yellow", markup=False, soft_wrap=True)


def bundled() -> list[dict[str, Any]]:
    """List the checkpoints that came with the package."""
    root = Path(str(files("paceline"))) / "assets"
    found = []
    for config in sorted(root.glob("*/config.json")):
        fields = json.loads(config.read_text())
        size = sum(file.stat().st_size for file in config.parent.iterdir() if file.is_file())
        found.append(
            {
                "name": config.parent.name,
                "kind": f"{fields['model_type']}, {fields['num_hidden_layers']} layers "
                f"of {fields['hidden_size']}, {fields['vocab_size']} tokens",
                "megabytes": round(size / 1e6, 1),
            }
        )
    return found
