"""Which tensors a checkpoint folder holds, read from the safetensors headers alone.

Finds the files (one, or the shards of an index), and sees that each is whole: its size is what
its header says. Knows nothing of models: a name is a name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.errors import CheckpointError
from paceline.models.fields import Fields

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_AGAIN = "download the model again"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies: from byte `start` of a file, in rows."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int


def read_headers(folder: Path) -> dict[str, Stored]:
    """Return every tensor of the checkpoint in `folder`, by name.

    Raises CheckpointError for a folder without safetensors, a missing shard, a file that is
    shorter or longer than its header says, and a tensor type that is not a float of 16 to 64
    bits.
    """
    tensors: dict[str, Stored] = {}
    for file in _files(folder):
        tensors.update(_read_header(file))
    return tensors


def shards(folder: Path) -> list[str]:
    """The files' names that the index in `folder` speaks of. Raises CheckpointError."""
    return sorted(set(Fields.read(folder / INDEX).members_of("weight_map").values()))


def foreign(names: Iterable[str]) -> str | None:
    """What is wrong with a folder or repository that holds no safetensors of a whole model, and
    what to do instead, by the files it holds; None where they say nothing of it."""
    found = list(names)
    if "adapter_config.json" in found:
        return (
            "is a LoRA adapter, not a whole model; merge it into its base model first: in peft "
            "load it, merge_and_unload it and save_pretrained it to a new folder"
        )
    if any(name.endswith(".gguf") for name in found):
        return (
            "has GGUF weights only, which are not read; give the folder or hub id of the "
            "safetensors model that they were made from"
        )
    if any(re.search(r"\.(bin|pt|pth)$", name) for name in found):
        return (
            "has pickled weights only; convert them to safetensors: in transformers load the "
            "model and save_pretrained it to a new folder"
        )
    return None


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = shards(folder)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{folder}: shard {missing[0]}{more} of {len(names)} is missing; {_AGAIN}"
            )
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    reason = foreign(entry.name for entry in folder.iterdir())
    if reason is not None:
        raise CheckpointError(f"{folder} {reason}")
    if any(folder.glob("model-*.safetensors")):
        raise CheckpointError(f"{folder} has shards but no {INDEX}; {_AGAIN}")
    raise CheckpointError(f"{folder} has no {SINGLE}; give a Hugging Face model folder")


def _read_header(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise CheckpointError(f"{file} is a Git LFS pointer; run 'git lfs pull' in its folder")
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is truncated within its header; {_AGAIN}")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = [
                (name, str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"])
                for name, entry in header.items()
            ]
            ends = [int(end) for *_, (_, end) in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{file} is no safetensors file; {_AGAIN}") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise CheckpointError(f"{file} is truncated: {size} of {whole} bytes; {_AGAIN}")
    if size > whole:
        raise CheckpointError(f"{file} is damaged: {size} bytes, not {whole}; {_AGAIN}")
    for name, dtype, shape, (begin, end) in entries:
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{file}: tensor {name} is {dtype}; use the bfloat16 or float32 version"
            )
        if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise CheckpointError(f"{file}: tensor {name} has the wrong size; {_AGAIN}")
    return {
        name: Stored(file, shape, _DTYPES[dtype], 8 + length + begin)
        for name, dtype, shape, (begin, _) in entries
    }
