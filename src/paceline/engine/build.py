"""From options to a machine that is ready: models opened, memory made, rounds recorded, loop set.

Everything slow happens here, once. Knows no requests; `engine.engine` is what a user holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.config import EngineConfig
from paceline.drafters import Drafter, create
from paceline.engine.budget import Budget, plan_memory
from paceline.engine.capture import CapturedRounds
from paceline.engine.loop import Loop
from paceline.engine.prefill import warm_up
from paceline.engine.round import Machine
from paceline.engine.rounds import EagerRounds, Rounds
from paceline.engine.scheduler import Scheduler
from paceline.engine.slots import Slots
from paceline.engine.threads import choose_threads
from paceline.errors import ConfigError
from paceline.kv.pools import KVPool
from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder
from paceline.models.loading import resolve
from paceline.models.opening import open_decoder
from paceline.ops.attention import BLOCK
from paceline.ops.choose import make_chooser
from paceline.speculation.verify import RULES
from paceline.text import Tokenizer
from paceline.types import Window


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine's inside. eos_ids: tokens that end a text unless a request says otherwise."""

    tokenizer: Tokenizer
    loop: Loop
    budget: Budget
    eos_ids: frozenset[int]
    threads: int


@dataclass(frozen=True, slots=True)
class _Target:
    """What drafters may borrow (`drafters.base.TargetInfo`)."""

    vocab_size: int
    hidden_size: int
    embedding: Tensor
    tokenizer: Tokenizer | None


def open_machine(config: EngineConfig, drafter: Drafter | None = None) -> Opened:
    """Open what `config` says; `drafter` stands for the one it names.

    Raises ConfigError and CheckpointError.
    """
    path = resolve(config.target)
    model, tokenizer = ModelConfig.from_folder(path), Tokenizer.load(path)
    made = drafter or _create(config)
    budget = plan_memory(config, model, made)
    limits, device = budget.limits, budget.limits.device
    target = open_decoder(config.target, config.dtype, device, limits.max_length)
    made.bind(_Target(model.vocab_size, model.hidden_size, target.embedding, tokenizer), limits)
    _check_features(made, target)
    rule = RULES[config.rule]
    pool = KVPool(target.spec, limits.pages, limits.page_size, device)
    compute = torch.promote_types(target.spec.dtype, torch.float32)
    slots = Slots(limits, rule.needs_q, compute)
    machine = Machine(target, pool, made, rule, slots, make_chooser(device))
    rounds = _rounds(config, machine)
    every_eos = {*model.eos_token_ids, *tokenizer.eos_ids}
    return Opened(
        tokenizer,
        Loop(machine, rounds, Scheduler(limits.slots), config.prefill_chunk),
        budget,
        # A tokenizer may name more tokens than the model has.
        frozenset(token for token in every_eos if token < model.vocab_size),
        _set_threads(config, machine),
    )


def _create(config: EngineConfig) -> Drafter:
    if config.draft is None:
        return create(config.drafter)
    return create(config.drafter, path=config.draft, dtype=config.dtype)


def _check_features(drafter: Drafter, target: Decoder) -> None:
    deepest = max(drafter.needs.features, default=0)
    if deepest > target.spec.layers:
        raise ConfigError(
            f"drafter {drafter.name!r} reads the features of layer {deepest}; the target has 0 to "
            f"{target.spec.layers}: choose a drafter made for this target"
        )


def _rounds(config: EngineConfig, machine: Machine) -> Rounds:
    """Rounds as the device wants them, everything they need compiled."""
    if machine.slots.limits.device.type != "cuda":
        return EagerRounds(machine)
    rounds: Rounds = EagerRounds(machine)
    if config.capture:
        most = machine.drafter.needs.most
        rounds = CapturedRounds(machine, config.k if most is None else min(config.k, most))
    warm_up(machine, config.prefill_chunk)
    return rounds


def _set_threads(config: EngineConfig, machine: Machine) -> int:
    limits = machine.slots.limits
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        return config.threads
    if limits.device.type != "cpu":
        return torch.get_num_threads()
    # A verify window on the scratch page, which nobody reads.
    node = torch.arange(min(config.k + 1, limits.max_length)).unsqueeze(0)
    window = Window(torch.zeros_like(node), node, node, node >= 0, ((0, BLOCK),))
    target = machine.target
    return choose_threads(lambda: target.head(target.forward(window, machine.pool)[0]))
