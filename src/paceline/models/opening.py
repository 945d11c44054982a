"""From a name to a decoder that is ready: resolve, read, check, load."""

from __future__ import annotations

import logging
import time

import torch

from paceline.errors import ConfigError, did_you_mean
from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder
from paceline.models.loading import check, load, resolve

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype for a name in `DTYPES`. Raises ConfigError."""
    if name not in DTYPES:
        raise ConfigError(
            f"dtype must be one of {', '.join(DTYPES)}, not {name!r}{did_you_mean(name, DTYPES)}"
        )
    return DTYPES[name]


def open_decoder(
    source: str,
    dtype: str,
    device: torch.device,
    max_length: int,
    extra_bytes: int = 0,
    steady: bool = True,
) -> Decoder:
    """Open the checkpoint `source` (a folder, a bundled model's name or a hub id).

    max_length: positions to serve. extra_bytes: other memory that must fit beside the weights.
    steady: False for drafts, see `Decoder`.
    Raises CheckpointError before any weight is read where it cannot be loaded.
    """
    began = time.perf_counter()
    kind = parse_dtype(dtype)
    path = resolve(source)
    config = ModelConfig.from_folder(path)
    check(path, config, kind, device, extra_bytes)
    with torch.inference_mode():
        decoder = Decoder(config, load(path, config, kind, device), max_length, steady)
    if max_length > config.max_length:
        log.warning(
            "%s was trained for %d positions and is opened for %d",
            source,
            config.max_length,
            max_length,
        )
    log.info(
        "opened %s (%s, %.1f million parameters, %s) in %.2f s",
        source,
        config.architecture,
        config.parameters() / 1e6,
        dtype,
        time.perf_counter() - began,
    )
    return decoder
