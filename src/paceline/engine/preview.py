"""What an engine would be, before anything large is downloaded or read: a pair checked as an
opening checks it, and its memory shared out as an opening shares it.

Reads configurations, tokenizers and the headers of weights that are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from paceline.config import EngineConfig
from paceline.drafters import create_for
from paceline.engine.budget import Room, plan_memory
from paceline.engine.lending import LentText
from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.devices import check_device
from paceline.models.loading import check
from paceline.models.opening import narrowing, parse_dtype, stretching
from paceline.models.source import Source, find
from paceline.text import Tokenizer
from paceline.types import Limits


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model of a pair. dtype: as its configuration says it is stored; length: positions it was
    trained for; here: whether its weights are on this machine; notes: what opening it would warn
    of, and what could not be checked yet."""

    name: str
    architecture: str
    parameters: int
    dtype: str
    length: int
    here: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """What `Engine` would open. config: with slots and device as they would be decided; memory:
    bytes by part; free: bytes on the device before."""

    config: EngineConfig
    limits: Limits
    models: tuple[ModelFacts, ...]
    memory: Mapping[str, int]
    free: int


def preview(
    target: str | Path, *, draft: str | Path | None = None, gpu: float | None = None,
    **options: object,
) -> Preview:  # fmt: skip
    """Check a pair and size its engine. options: as `Engine` takes them, drafters by name only.
    gpu: GiB that are free on a GPU to reckon with instead, which need not be here.

    Raises the ConfigError or CheckpointError that opening it would raise, but for what is found in
    weights that are still on the hub.
    """
    if gpu is not None and not 0 < gpu < 1 << 20:
        raise ConfigError(f"gpu must be a number of GiB above 0, not {gpu!r}")
    if gpu is not None:
        options["device"] = "cpu"  # a GPU that is not here cannot be asked for
    config = EngineConfig.make(
        target=str(target), draft=None if draft is None else str(draft), **options
    )
    check_device(torch.device(config.device), config.dtype)
    source = find(config.target)
    model = ModelConfig.from_folder(source.folder)
    facts = [_facts(source, model, config.dtype)]
    drafter = create_for(config.drafter, config.draft, config.dtype)
    if config.draft is not None:
        other = find(config.draft)
        facts.append(_facts(other, ModelConfig.from_folder(other.folder), config.dtype))
    loading = Future[Tokenizer]()
    loading.set_result(Tokenizer.load(source.folder))
    drafter.check(LentText(source.folder, loading))
    room = None if gpu is None else Room(torch.device("cuda"), int(gpu * 2**30))
    budget = plan_memory(config, model, drafter, room)
    facts = [_at(one, budget.limits.max_length) for one in facts]
    return Preview(
        replace(config, slots=budget.slots),
        budget.limits,
        tuple(facts),
        {part.name: part.size for part in budget.parts},
        budget.free,
    )


def _at(facts: ModelFacts, length: int) -> ModelFacts:
    """With what opening it for so many positions would warn of."""
    note = stretching(facts.length, length)
    return facts if note is None else replace(facts, notes=(*facts.notes, note))


def _facts(source: Source, model: ModelConfig, dtype: str) -> ModelFacts:
    here, notes = source.has_weights(), []
    if here:
        stored = check(source.folder, model)
    else:
        stored = frozenset({model.dtype})
        notes.append("is checked by its configuration only: its weights are still on the hub")
    rounded = narrowing(stored, parse_dtype(dtype))
    if rounded is not None:
        notes.append(rounded)
    return ModelFacts(
        source.name,
        model.architecture,
        model.parameters(),
        str(model.dtype).removeprefix("torch."),
        model.max_length,
        here,
        tuple(notes),
    )
