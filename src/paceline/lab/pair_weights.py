"""Values of a calibrated checkpoint's tensors, and the files they are written to.

The stream must stay the token's embedding through all layers, so what writes to it (attention
output, MLP down) is drawn with a scale of 2^-30: beside entries of ±64 that vanishes in bfloat16
and in float32 (half a step of float32 there is 2^-19). The final norm then gives the class's code
of ±1 exactly, and the head turns codes into chosen logits. All else is random at the scale that
keeps activations near 1, so that memory traffic and arithmetic are those of a real model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from paceline.lab.pair_law import FILLER, Law
from paceline.lab.pair_shapes import Shape, TensorSpec

# ±64 rather than ±1: the mean square, 4096, swallows the norm's eps in float32 too.
EMBEDDING = 64.0
WRITE = 2.0**-30
SHARD_BYTES = 4_900_000_000

Report = Callable[[int], None]
"""Called with the bytes that were written."""


def code_length(shape: Shape) -> int:
    """Return D, the dimensions that carry the classes' code: the largest power of two in d."""
    return 1 << (shape.hidden.bit_length() - 1)


class Codes:
    """The classes' rows of ±1: `embedding` and `head` [C, d] int8.

    The first D columns are rows of a Hadamard matrix (Sylvester's), its columns' signs flipped at
    random, so rows are orthogonal with length D. The other d − D columns add nothing to a product
    of an embedding's row and a head's: all embeddings have the same signs there, and a head's row
    agrees with them exactly as often as not. Sums over any aligned block of a power of two are
    exact in bfloat16, so that no order of summation changes a logit.
    """

    def __init__(self, shape: Shape, classes: int, seed: int) -> None:
        random = np.random.default_rng([seed, 1])
        length, rest = code_length(shape), shape.hidden - code_length(shape)
        rows = random.permutation(length)[:classes].astype(np.uint32)
        odd = np.bitwise_count(rows[:, None] & np.arange(length, dtype=np.uint32)) & 1
        code = (1 - 2 * odd.astype(np.int8)) * self._signs(random, (length,))
        shared = self._signs(random, (rest,))
        half = self._signs(random, (classes, rest // 2))
        balanced = np.zeros((classes, rest), np.int8)  # an odd last column stays 0
        balanced[:, 0 : 2 * (rest // 2) : 2] = half
        balanced[:, 1 : 2 * (rest // 2) : 2] = -half
        same = np.broadcast_to(shared, (classes, rest))
        self.embedding = torch.from_numpy(np.concatenate([code, same], axis=1))
        self.head = torch.from_numpy(np.concatenate([code, balanced * shared], axis=1))

    @staticmethod
    def _signs(random: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.int8]:
        return random.choice(np.array([-1, 1], np.int8), size)


class Values:
    """Makes one tensor at a time, in bfloat16 on `device`."""

    def __init__(self, shape: Shape, law: Law, role: str, seed: int, device: torch.device) -> None:
        codes = Codes(shape, law.classes, seed)
        self._codes = {
            "embedding": codes.embedding.to(device, torch.bfloat16),
            "head": codes.head.to(device, torch.bfloat16),
        }
        self._embedded = torch.from_numpy(law.klass).to(device)
        claimed, logit = law.klass.copy(), np.full(shape.vocab, FILLER)
        for tokens, values in zip((law.first, law.second), law.logits(role), strict=True):
            claimed[tokens], logit[tokens] = np.arange(law.classes), values
        self._claimed = torch.from_numpy(claimed).to(device)
        # Exact: a logit has at most eight significant bits, D is a power of two.
        scale = torch.from_numpy(logit / code_length(shape))
        self._scale = scale.to(device, torch.bfloat16).unsqueeze(1)
        self._generator = torch.Generator(device)
        self._device, self._seed = device, 2 * seed + (role == "draft")

    def make(self, spec: TensorSpec, number: int) -> Tensor:
        """Return tensor `number` of the table."""
        if spec.kind == "embedding":
            return self._codes["embedding"].mul(EMBEDDING)[self._embedded]
        if spec.kind == "head":
            return self._codes["head"][self._claimed].mul_(self._scale)
        out = torch.empty(spec.size, dtype=torch.bfloat16, device=self._device)
        if spec.kind == "final_gain":
            return out.fill_(1.0)
        # A seed for each tensor, so that one can be made without those before it.
        self._generator.manual_seed((self._seed * 1_000_003 + number) % 2**63)
        if spec.kind == "gain":
            return out.normal_(1.0, 0.1, generator=self._generator)
        if spec.kind == "bias":
            return out.normal_(0.0, 0.1, generator=self._generator)
        std = spec.fan_in**-0.5 * (WRITE if spec.kind == "write" else 1.0)
        return out.normal_(0.0, std, generator=self._generator)


def _shards(table: list[TensorSpec], limit: int) -> Iterator[list[int]]:
    """Yield the numbers of the tensors of each shard; one above the limit stands alone."""
    shard: list[int] = []
    size = 0
    for number, spec in enumerate(table):
        if shard and size + 2 * spec.elements > limit:
            yield shard
            shard, size = [], 0
        shard.append(number)
        size += 2 * spec.elements
    yield shard


def write_weights(
    folder: Path, shape: Shape, values: Values, report: Report, limit: int = SHARD_BYTES
) -> None:
    """Write the shards and model.safetensors.index.json into `folder`, one tensor at a time.

    Raises OSError where that fails.
    """
    table = shape.tensors()
    shards = list(_shards(table, limit))
    where: dict[str, str] = {}
    for index, numbers in enumerate(shards, 1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        where |= {table[number].name: name for number in numbers}
        # The format by hand, because safetensors' own writer wants the whole shard in memory and
        # took 3 s a gigabyte where this takes 0.2.
        with (folder / name).open("wb") as file:
            file.write(_header([table[number] for number in numbers]))
            for number in numbers:
                tensor = values.make(table[number], number).cpu().contiguous()
                file.write(tensor.view(torch.uint8).numpy().data)
                report(2 * tensor.numel())
        with safe_open(folder / name, "pt") as reader:  # its own reader checks header and size
            assert set(reader.keys()) == {table[number].name for number in numbers}
    text = json.dumps(
        {"metadata": {"total_size": shape.weight_bytes()}, "weight_map": where}, indent=2
    )
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _header(specs: list[TensorSpec]) -> bytes:
    """Return what stands before the data in a safetensors file: the length of the JSON in eight
    bytes, little end first, and the JSON, padded with spaces to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + 2 * spec.elements
        entries[spec.name] = {
            "dtype": "BF16", "shape": list(spec.size), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
