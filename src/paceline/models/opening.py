"""From a name to a decoder that is ready: resolve, read, check, load; and what it will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

import torch

from paceline.errors import ConfigError, did_you_mean
from paceline.kv.pools import kv_bytes
from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder, kv_spec
from paceline.models.loading import LayerWeights, check, load
from paceline.models.source import Source
from paceline.ops.linear import kept
from paceline.types import Limits, MemoryPart

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype for a name in `DTYPES`. Raises ConfigError."""
    if name not in DTYPES:
        raise ConfigError(
            f"dtype must be one of {', '.join(DTYPES)}, not {name!r}{did_you_mean(name, DTYPES)}"
        )
    return DTYPES[name]


def narrowing(stored: Collection[torch.dtype], dtype: torch.dtype) -> str | None:
    """What to say of weights stored in these dtypes and opened as `dtype`; None where that keeps
    every one as it is."""
    lost = [kind for kind in stored if torch.promote_types(kind, dtype) != dtype]
    if not lost:
        return None
    # float16 and bfloat16 each have numbers that the other lacks: both fit into float32.
    ask = torch.float64 if torch.float64 in lost else torch.float32
    names, opened, wanted = (
        " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        for kinds in (lost, [dtype], [ask])
    )
    return (
        f"holds {names} weights and is opened as {opened}, which rounds them; dtype {wanted} keeps "
        f"them, in {ask.itemsize} bytes a weight instead of {dtype.itemsize}"
    )


def stretching(trained: int, opened: int) -> str | None:
    """What to say of a model that is opened for more positions than it was trained for; None where
    it is not."""
    if opened <= trained:
        return None
    return f"was trained for {trained} positions and is opened for {opened}"


def decoder_memory(
    name: str, config: ModelConfig, dtype: str, limits: Limits, steady: bool = True
) -> tuple[MemoryPart, MemoryPart]:
    """What a model takes once opened, as `{name} weights` and `{name} cache`, the rotary table
    included. Reads nothing; see `open_decoder` for the arguments."""
    kind = parse_dtype(dtype)
    table = config.vocab_size * config.hidden_size
    products, how = config.parameters() - table, kept(kind, limits.device, steady)
    if config.tie_embeddings and how is not None and how.copied:
        products += table  # a copy for the head's product; as it lies for the embedding
    item = kind.itemsize if how is None else how.dtype.itemsize + how.beside
    weights = table * kind.itemsize + products * item
    spec = kv_spec(config, kind, limits.device, steady)
    angle = 2 * torch.promote_types(kind, torch.float32).itemsize  # a complex number
    turns = limits.max_length * config.head_dim // 2 * angle
    if limits.device.type == "cuda":
        turns *= 2  # kernels read real numbers, torch complex ones
    cache = kv_bytes(spec, limits.pages * limits.page_size) + turns
    return MemoryPart(f"{name} weights", weights, True), MemoryPart(f"{name} cache", cache)


def open_decoder(
    source: Source,
    dtype: str,
    device: torch.device,
    max_length: int,
    steady: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Open the model that was found as `source`.

    max_length: positions to serve. steady: False for drafts, see `Decoder`. progress(done, all)
    is called after each layer. Raises CheckpointError before any weight is downloaded or read
    where it cannot be loaded; whether it fits is the caller's to ask, with `decoder_memory`.
    """
    kind = parse_dtype(dtype)
    config = ModelConfig.from_folder(source.folder)
    path = source.with_weights()
    began = time.perf_counter()
    note = narrowing(check(path, config), kind)
    if note is not None:
        log.warning("%s %s", source.name, note)
    with torch.inference_mode():
        weights = load(path, config, kind, device)
        if progress is not None:
            weights = replace(weights, layers=_counted(weights.layers, config.layers, progress))
        decoder = Decoder(config, weights, max_length, steady)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # so that the seconds below are those of the reading
    if (note := stretching(config.max_length, max_length)) is not None:
        log.warning("%s %s", source.name, note)
    seconds, size = time.perf_counter() - began, config.weight_bytes(kind)
    log.info(
        "opened %s (%s, %.1f million parameters, %s) in %.2f s, %.1f GB/s",
        source.name,
        config.architecture,
        config.parameters() / 1e6,
        dtype,
        seconds,
        size / 1e9 / seconds,
    )
    return decoder


def _counted(
    layers: Iterable[LayerWeights], count: int, progress: Callable[[int, int], None]
) -> Iterator[LayerWeights]:
    for done, layer in enumerate(layers, 1):
        progress(done, count)
        yield layer
