"""`paceline info`: what this installation and this machine have."""

from __future__ import annotations

import json
import os
import platform
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table

from paceline.cli.common import Json, stdout, versions, write_json


def info(json_: Json = False) -> None:
    """Show versions, device, threads, memory and the bundled models."""
    found = gather()
    if json_:
        write_json(found)
        return
    table = Table.grid(padding=(0, 2))
    for name, number in found["versions"].items():
        table.add_row(name, number)
    table.add_row("device", found["device"])
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
    """Collect everything as plain values."""
    memory = psutil.virtual_memory()
    cuda = torch.cuda.is_available()
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
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
