"""Calibrated pairs: two checkpoints of real shapes whose acceptance is the number asked for.

Owns the order of work and the promise that a folder which has the name asked for is whole. The
law is `pair_law`'s, the values are `pair_weights`'s, shapes, tokenizer and card have files too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline import __version__
from paceline.errors import ConfigError
from paceline.lab.pair_card import card
from paceline.lab.pair_law import Law, make_law, summary
from paceline.lab.pair_shapes import Shape, find_shape
from paceline.lab.pair_tokenizer import special_ids, words, write_tokenizer
from paceline.lab.pair_weights import Values, code_length, write_weights

Progress = Callable[[str, int, int], None]
"""Called with what is being written, bytes done, and bytes in all."""

# Tokenizer, law, card and configuration of one checkpoint, with room to spare.
_BESIDE_WEIGHTS = 30 * 10**6


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What to make. target_shape, draft_shape: as `find_shape` takes them. out: the folder that
    will hold target/ and draft/. acceptance: above 0, at most 1."""

    target_shape: str
    draft_shape: str
    acceptance: float
    out: Path
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class PairReport:
    """What was made. stated: the figures that card and config.json state."""

    target: Path
    draft: Path
    target_bytes: int
    draft_bytes: int
    seconds: float
    stated: dict[str, Any]


def make_pair(options: PairOptions, progress: Progress | None = None) -> PairReport:
    """Write the pair. It appears under its name when it is whole, and not at all otherwise.

    Raises ConfigError for an option that cannot be used, an `out` that is not empty or cannot be
    written, and a disk that is too small.
    """
    began = time.perf_counter()
    device = _device(options)
    shapes = {"target": find_shape(options.target_shape), "draft": find_shape(options.draft_shape)}
    own_vocab = {role: shape.vocab for role, shape in shapes.items()}
    vocab = own_vocab["target"]
    shapes["draft"] = shapes["draft"].with_vocab(vocab)
    ordinary = words(vocab)
    classes = min(*(code_length(shape) for shape in shapes.values()), len(ordinary) // 2)
    law = make_law(vocab, ordinary, classes, options.acceptance, options.seed)
    total = sum(shape.weight_bytes() for shape in shapes.values())
    _check_out(options.out, total + 2 * _BESIDE_WEIGHTS)
    stated = _stated(options, law, shapes)
    done = 0

    def report(what: str) -> Callable[[int], None]:
        def add(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(what, done, total)

        return add

    out = options.out.absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        for role, shape in shapes.items():
            folder = partial / role
            folder.mkdir(parents=True)
            values = Values(shape, law, role, options.seed, device)
            write_weights(folder, shape, values, report(f"{role}, {shape.name}"))
            del values  # the device holds one model's tables at a time
            _write_rest(folder, role, shape, law, stated, own_vocab[role])
        if out.is_dir():
            out.rmdir()  # it was empty, and os.rename onto a folder is not portable
        partial.rename(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{options.out} cannot be written ({reason}); give another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PairReport(
        target=out / "target",
        draft=out / "draft",
        target_bytes=shapes["target"].weight_bytes(),
        draft_bytes=shapes["draft"].weight_bytes(),
        seconds=time.perf_counter() - began,
        stated=stated,
    )


def _device(options: PairOptions) -> torch.device:
    if not 0 < options.acceptance <= 1 or math.isnan(options.acceptance):
        raise ConfigError(
            f"acceptance must be above 0 and at most 1, not {options.acceptance:g}; 0.8 means that "
            "four of five draft tokens are accepted"
        )
    if not 0 <= options.seed < 2**31:
        raise ConfigError(f"seed must be a whole number from 0 to 2^31 - 1, not {options.seed}")
    if options.device not in ("cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, not {options.device!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device here; use --device cpu (slower to write)")
    return torch.device(options.device)


def _check_out(out: Path, needed: int) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder that is empty or not there yet")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; give another --out, or remove it first")
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ConfigError(
            f"{out}: the pair needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; give "
            "an --out on another disk, or smaller shapes"
        )


def _stated(options: PairOptions, law: Law, shapes: dict[str, Shape]) -> dict[str, Any]:
    return {
        "purpose": "for measuring speculative decoding, not for text",
        "paceline": __version__,
        "target_shape": shapes["target"].name,
        "draft_shape": shapes["draft"].name,
        "acceptance_asked": options.acceptance,
        "seed": options.seed,
        "device": options.device,
        **summary(law),
    }


def _write_rest(
    folder: Path, role: str, shape: Shape, law: Law, stated: dict[str, Any], own_vocab: int
) -> None:
    """Write everything but the weights into `folder`."""

    def write(name: str, value: dict[str, Any], indent: int | None = 2) -> None:
        text = json.dumps(value, indent=indent) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

    ids = special_ids(shape.vocab)
    calibrated = {"role": role, **stated}
    write("config.json", shape.config | ids | {"paceline_calibrated": calibrated})
    write("generation_config.json", ids | {"do_sample": False})
    write_tokenizer(folder, shape.vocab, int(shape.config["max_position_embeddings"]))
    pairs = {
        f"{name}_logits": [list(pair) for pair in zip(*law.logits(name), strict=True)]
        for name in ("target", "draft")
    }
    lists = {"first": law.first, "second": law.second, "agree": law.agree}
    plain = {name: values.tolist() for name, values in lists.items()}
    write("calibration.json", {"class_of_token": law.klass.tolist(), **plain, **pairs}, None)
    command = (
        f"paceline pair make --target-shape {stated['target_shape']} --draft-shape "
        f"{stated['draft_shape']} --acceptance {stated['acceptance_asked']:g} --seed "
        f"{stated['seed']} --device {stated['device']} --out DIR"
    )
    text = card(role, shape, law, stated, own_vocab, command)
    (folder / "README.md").write_text(text, encoding="utf-8")
