"""Weights from a checkpoint: a table of names, slices and transforms, and its execution.

`check` says before any work whether `load` will succeed. Owns the order of merged rows (query,
key, value; gate, up) and of rotary pairs: checkpoints store a head's rotary dimensions as two
halves [0 … D/2-1 | D/2 … D-1], the decoder takes them interleaved [0, D/2, 1, D/2+1, …]. Both q
and k are permuted, so their products do not change. Must not know how the weights are used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from paceline.errors import CheckpointError
from paceline.models.checkpoint import Stored, read_headers
from paceline.models.config import ModelConfig
from paceline.models.source import resolve
from paceline.models.streaming import Carrier

__all__ = ["LayerWeights", "Weights", "check", "load", "resolve"]

log = logging.getLogger(__name__)

# Tensors that older checkpoints carry and that are computed here.
_COMPUTED = ("rotary_emb.inv_freq", "masked_bias")
_COPY_ELEMENTS = 32 * 2**20


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block's weights. Hq query heads, Hkv key heads of D; d hidden, ff intermediate.

    attention_norm [d]; qkv [(Hq+2Hkv)·D, d]; q_norm, k_norm [D]; o [d, Hq·D]; mlp_norm [d];
    gate_up [2·ff, d], the gate first; down [d, ff]; biases [rows] or None.
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights. embedding [V, d]; final_norm [d]; head [V, d], the same tensor object
    as `embedding` when the two are tied. layers is read as it is walked, once: who packs a layer
    and drops it never holds the weights twice."""

    embedding: Tensor
    final_norm: Tensor
    head: Tensor
    layers: Iterable[LayerWeights]


@dataclass(frozen=True, slots=True)
class _Part:
    """One stored tensor that becomes rows of a weight. heads: its rows are that many heads
    whose rotary halves are to be interleaved; 0 takes them as they are."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0


_Table = dict[str, tuple[_Part, ...]]


def _ends(config: ModelConfig) -> _Table:
    """What lies before and after the layers."""
    matrix = (config.vocab_size, config.hidden_size)
    table: _Table = {
        "embedding": (_Part("model.embed_tokens.weight", matrix),),
        "final_norm": (_Part("model.norm.weight", (config.hidden_size,)),),
    }
    if not config.tie_embeddings:
        table["head"] = (_Part("lm_head.weight", matrix),)
    return table


def _layer(config: ModelConfig, number: int) -> _Table:
    """The fields of LayerWeights that layer `number` has, each with the tensors it is made of."""
    base, d, ff = f"model.layers.{number}", config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp = f"{base}.self_attn", f"{base}.mlp"
    rows = (
        ("q_proj", query, config.heads),
        ("k_proj", key, config.kv_heads),
        ("v_proj", key, 0),
    )
    gates = ("gate_proj", "up_proj")
    table: _Table = {
        "attention_norm": (_Part(f"{base}.input_layernorm.weight", (d,)),),
        "qkv": tuple(_Part(f"{attention}.{n}.weight", (r, d), heads) for n, r, heads in rows),
        "o": (_Part(f"{attention}.o_proj.weight", (d, query)),),
        "mlp_norm": (_Part(f"{base}.post_attention_layernorm.weight", (d,)),),
        "gate_up": tuple(_Part(f"{mlp}.{n}.weight", (ff, d)) for n in gates),
        "down": (_Part(f"{mlp}.down_proj.weight", (d, ff)),),
    }
    if config.qkv_bias:
        table["qkv_bias"] = tuple(
            _Part(f"{attention}.{n}.bias", (r,), heads) for n, r, heads in rows
        )
    if config.o_bias:
        table["o_bias"] = (_Part(f"{attention}.o_proj.bias", (d,)),)
    if config.qk_norm:
        table["q_norm"] = (_Part(f"{attention}.q_norm.weight", (config.head_dim,), 1),)
        table["k_norm"] = (_Part(f"{attention}.k_norm.weight", (config.head_dim,), 1),)
    if config.mlp_bias:
        table["gate_up_bias"] = tuple(_Part(f"{mlp}.{n}.bias", (ff,)) for n in gates)
        table["down_bias"] = (_Part(f"{mlp}.down_proj.bias", (d,)),)
    return table


def check(path: Path, config: ModelConfig) -> frozenset[torch.dtype]:
    """See that the files are what `load` will want, reading headers only; return the dtypes in
    which the weights are stored.

    Raises CheckpointError for a missing or damaged file, a missing tensor or one of another
    shape. Tensors that nobody asked for are logged as a warning.
    """
    stored = _normalize(read_headers(path))
    parts = [part for group in _ends(config).values() for part in group]
    for number in range(config.layers):
        parts += [part for group in _layer(config, number).values() for part in group]
    missing = [part.name for part in parts if part.name not in stored]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{path}: tensor {missing[0]}{more} is missing; weights and config.json do not "
            "belong together, download both again"
        )
    for part in parts:
        found = stored[part.name]
        if found.shape != part.shape:
            raise CheckpointError(
                f"{found.file}: tensor {part.name} is {list(found.shape)}, config.json says "
                f"{list(part.shape)}; they do not belong together, download both again"
            )
    known = {part.name for part in parts}
    spare = [name for name in stored if name not in known and not name.endswith(_COMPUTED)]
    if config.tie_embeddings:
        spare = [name for name in spare if name != "lm_head.weight"]
    if spare:
        log.warning("%s: %d tensors are not used, the first is %s", path, len(spare), spare[0])
    return frozenset(stored[part.name].dtype for part in parts)


def load(path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    """Read the weights as `dtype` onto `device`, piece by piece: no second copy is ever held.

    Call `check` first; a checkpoint that fails it fails here with whatever error comes.
    """
    with _Reader(path, dtype, device) as reader:
        ends = {field: reader.read(parts) for field, parts in _ends(config).items()}
        embedding = ends["embedding"]
        reader.finish()
        head = ends.get("head")
        if head is None:
            head = reader.tied_head(embedding)
    layers = _load_layers(path, config, dtype, device)
    return Weights(embedding, ends["final_norm"], head, layers)


def _load_layers(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Iterator[LayerWeights]:
    with _Reader(path, dtype, device) as reader:
        for number in range(config.layers):
            yield _load_layer(reader, config, number)


def _load_layer(reader: _Reader, config: ModelConfig, number: int) -> LayerWeights:
    got = {field: reader.read(parts) for field, parts in _layer(config, number).items()}
    reader.finish()
    return LayerWeights(
        attention_norm=got["attention_norm"],
        qkv=got["qkv"],
        qkv_bias=got.get("qkv_bias"),
        q_norm=got.get("q_norm"),
        k_norm=got.get("k_norm"),
        o=got["o"],
        o_bias=got.get("o_bias"),
        mlp_norm=got["mlp_norm"],
        gate_up=got["gate_up"],
        gate_up_bias=got.get("gate_up_bias"),
        down=got["down"],
        down_bias=got.get("down_bias"),
    )


def _normalize(stored: dict[str, Stored]) -> dict[str, Stored]:
    """Give the names of a checkpoint saved without its head (AutoModel) their usual prefix."""
    if "model.embed_tokens.weight" in stored or "embed_tokens.weight" not in stored:
        return stored
    return {f"model.{name}": where for name, where in stored.items()}


class _Reader:
    """The copying of a checkpoint's tensors into weights."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._stored = _normalize(read_headers(path))
        self._dtype, self._device = dtype, device
        self._carrier = Carrier(device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._carrier.close()

    def finish(self) -> None:
        """What was read is there from here on."""
        self._carrier.finish()

    def read(self, parts: tuple[_Part, ...]) -> Tensor:
        """Return `parts` below one another, [sum of rows, …], heads interleaved; the last of them
        are there after `finish`."""
        rows = sum(part.shape[0] for part in parts)
        out = torch.empty(rows, *parts[0].shape[1:], dtype=self._dtype, device=self._device)
        first = 0
        for part in parts:
            self._copy(part, out[first : first + part.shape[0]])
            first += part.shape[0]
        return out

    def tied_head(self, embedding: Tensor) -> Tensor:
        """`embedding`, unless the file has a head of its own that differs: transformers then
        does not tie, whatever the configuration says."""
        stored = self._stored.get("lm_head.weight")
        if stored is None or stored.shape != tuple(embedding.shape):
            return embedding
        head = self.read((_Part("lm_head.weight", stored.shape),))
        self.finish()
        if torch.equal(head, embedding):
            return embedding
        log.warning("%s: tie_word_embeddings is on but lm_head differs; not tied", stored.file)
        return head

    def _copy(self, part: _Part, out: Tensor) -> None:
        """Copy one stored tensor into `out` in slices of bounded size."""
        rows, tail = part.shape[0], part.shape[1:]
        columns = math.prod(tail)
        unit = rows // part.heads if part.heads else 1  # rows that must stay together
        step = max(1, _COPY_ELEMENTS // (unit * columns)) * unit
        for first in range(0, rows, step):
            target = out[first : first + step]
            put = partial(_interleave, target, unit) if part.heads else target.copy_
            self._carrier.carry(self._stored[part.name], first * columns, target.shape, put)


def _interleave(out: Tensor, unit: int, piece: Tensor) -> None:
    """Copy heads of `unit` rows each, their rotary halves interleaved."""
    tail = piece.shape[1:]
    halves = piece.view(-1, 2, unit // 2, *tail)  # [heads, 2, D/2, …]
    out.view(-1, unit // 2, 2, *tail).copy_(halves.transpose(1, 2))
