"""From options to a machine that is ready: models opened, memory made, rounds recorded, loop set.

Everything slow happens here, once. Knows no requests; `engine.engine` is what a user holds.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from paceline.config import EngineConfig
from paceline.drafters import Drafter, create_for
from paceline.engine.budget import Budget, plan_memory
from paceline.engine.capture import CapturedRounds, every_plan, run_once, widths
from paceline.engine.constrain import Constrainer
from paceline.engine.cost import CostTable
from paceline.engine.costs import Costs
from paceline.engine.feeding import Feeder
from paceline.engine.fixed import FixedK
from paceline.engine.ledger import Ledger
from paceline.engine.lending import Lent, LentText, check_needs
from paceline.engine.loop import Loop
from paceline.engine.measuring import Rig, cost_table, costs_of, keep, powers
from paceline.engine.paces import Paces
from paceline.engine.pilot import Pilot
from paceline.engine.policy import Governor
from paceline.engine.practice import practise
from paceline.engine.prefill import warm_up
from paceline.engine.readings import (
    CapturedReadings,
    EagerReadings,
    Readings,
    every_pass,
    rehearse,
    time_at_once,
)
from paceline.engine.round import Machine
from paceline.engine.rounds import EagerRounds, Rounds
from paceline.engine.scheduling import Scheduler
from paceline.engine.slots import Slots
from paceline.engine.threads import choose_threads
from paceline.kv.pools import KVPool
from paceline.models.config import ModelConfig
from paceline.models.decoder import abridged
from paceline.models.devices import check_device
from paceline.models.opening import open_decoder
from paceline.models.source import find
from paceline.ops.choose import make_chooser
from paceline.ops.compiling import compiling
from paceline.speculation.verify import RULES
from paceline.text import Tokenizer
from paceline.types import Window

log = logging.getLogger(__name__)

_SWITCH = 2e-4  # seconds that a thread keeps Python's lock while another wants it
_opening, _openings, _before = threading.Lock(), 0, 0.0

Progress = Callable[[str, int, int], None]


def quiet(what: str, done: int, count: int) -> None:
    """No progress."""


def on_device(name: str) -> Callable[[], AbstractContextManager[None]]:
    """A maker of contexts in which the engine works: kernels go to a thread's current device."""
    device = torch.device(name)
    if name == "cuda":  # other threads have a current device of their own
        device = torch.device("cuda", torch.cuda.current_device())

    @contextmanager
    def working() -> Iterator[None]:
        on_gpu = device.type == "cuda"
        with torch.inference_mode(), torch.cuda.device(device) if on_gpu else nullcontext():
            yield

    return working


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine's inside. practice: a loop over the same machine for made-up requests before the
    first user's, None where a device is as fast at first; eos_ids: tokens that end a text unless a
    request says otherwise; widest: draft tokens a round at most; keep: saves what live rounds
    taught, at the end; chooses: K is chosen round by round, from what rounds cost; costs: what they
    cost, as known or (seconds given) measured now."""

    tokenizer: Tokenizer
    loop: Loop
    practice: Loop | None
    budget: Budget
    eos_ids: frozenset[int]
    threads: int
    widest: int
    keep: Callable[[], None]
    chooses: bool
    costs: Callable[[float | None], Costs]


@dataclass(frozen=True, slots=True)
class _Choosing:
    """How K is decided. pilot: makes one that decides and has learned nothing yet; table: what
    rounds cost, None where K is fixed; keep: see `Opened`."""

    pilot: Callable[[], Pilot]
    table: CostTable | None
    keep: Callable[[], None]


def open_machine(
    config: EngineConfig, drafter: Drafter | None = None, progress: Progress = quiet
) -> Opened:
    """Open what `config` says; `drafter` stands for the one it names. progress(what, done, all)
    is called on the way; all is 0 where nobody can say.

    Raises ConfigError and CheckpointError.
    """
    check_device(torch.device(config.device), config.dtype)
    source = find(config.target)
    path, model = source.folder, ModelConfig.from_folder(source.folder)
    made = drafter or create_for(config.drafter, config.draft, config.dtype)
    reading = ThreadPoolExecutor(1, "paceline-tokenizer")
    # Its imports take longest of all: beside a device that wakes up, weights and kernels.
    loading = reading.submit(Tokenizer.load, path)
    reading.shutdown(wait=False)
    budget = plan_memory(config, model, made)
    made.check(LentText(path, loading))  # before any weights are read
    limits, device = budget.limits, budget.limits.device
    with _many_threads():
        target = open_decoder(
            source,
            config.dtype,
            device,
            limits.max_length,
            progress=partial(progress, "reading the target"),
        )
        progress("opening the drafter", 0, 0)
        made.bind(Lent(path, loading, target), limits)
    if loading.done():
        loading.result()  # what went wrong already is told before kernels are compiled
    check_needs(made, target, recorded=device.type == "cuda" and config.capture)
    rule = RULES[config.rule]
    pool = KVPool(target.spec, limits.pages, limits.page_size, device)
    compute = torch.promote_types(target.spec.dtype, torch.float32)
    slots = Slots(limits, rule.needs_q, compute)
    machine = Machine(target, pool, made, rule, slots, make_chooser(device))
    most = made.needs.most
    k = config.k if most is None else min(config.k, most)
    paces = Paces(target.half_context)
    rounds, readings = _ready(config, machine, k, paces, progress)
    asked = time.perf_counter()
    tokenizer = loading.result()
    log.info("waited %.1f s for the tokenizer", time.perf_counter() - asked)
    if device.type == "cpu" and config.threads is None:
        progress("choosing threads", 0, 0)
    if _slow_at_first(device):
        practise(_make_loop(config, machine, rounds, readings, k, paces, FixedK(k)), tokenizer)
    threads = _set_threads(config, machine)
    rig = _make_rig(machine, rounds, readings, k)
    choosing = _choosing(config, rig, k, progress)
    every_eos = {*model.eos_token_ids, *tokenizer.eos_ids}
    looped = partial(_make_loop, config, machine, rounds, readings, k, paces)
    practice = looped(choosing.pilot()) if _slow_at_first(device) else None
    return Opened(
        tokenizer,
        looped(choosing.pilot()),
        practice,
        budget,
        # A tokenizer may name more tokens than the model has.
        frozenset(token for token in every_eos if token < model.vocab_size),
        threads,
        k,
        choosing.keep,
        choosing.table is not None,
        partial(costs_of, rig, choosing.table),
    )


@contextmanager
def _many_threads() -> Iterator[None]:
    """Who waits for Python's lock gets it soon: while one thread imports and reads a vocabulary,
    others ask for it after each few milliseconds of reading weights, and would lose as much. (Not
    for threads that compile: 32 that all have work lose time by changing so often.)"""
    global _openings, _before
    with _opening:  # several engines may open at once, and the last one restores it
        if not _openings:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, _SWITCH))
        _openings += 1
    try:
        yield
    finally:
        with _opening:
            _openings -= 1
            if not _openings:
                sys.setswitchinterval(_before)


def _slow_at_first(device: torch.device) -> bool:
    return device.type == "cuda"


def _make_loop(
    config: EngineConfig,
    machine: Machine,
    rounds: Rounds,
    readings: Readings,
    k: int,
    paces: Paces,
    pilot: Pilot,
) -> Loop:
    """The loop over a machine that is ready. k: the widest draft; paces: what all loops over this
    machine have learned."""
    limits, needs = machine.slots.limits, machine.drafter.needs
    reach = 2 * k + 2
    scheduler = Scheduler(
        slots=limits.slots,
        pages=limits.pages,
        page_size=limits.page_size,
        max_length=limits.max_length,
        reach=reach,
        lookahead=k,
        prefix=config.prefix_cache,
        catch_up=needs.catch_up,
        shift=needs.shift,
    )
    feeder = Feeder(machine, readings, scheduler, config.prefill_chunk, paces, config.max_gap)
    ledger, constrainer = Ledger(machine, scheduler), Constrainer(machine)
    return Loop(
        machine, rounds, scheduler, ledger, feeder, pilot, reach, widest=k, constrainer=constrainer
    )


def _make_rig(machine: Machine, rounds: Rounds, readings: Readings, k: int) -> Rig:
    """What there is to measure of rounds."""
    if isinstance(rounds, CapturedRounds):
        return Rig(machine, rounds, readings, rounds.ks, rounds.sizes, rounded=True)
    slots = machine.slots.limits.slots - 1
    return Rig(machine, rounds, readings, widths(k), powers(slots), rounded=False)


def _choosing(config: EngineConfig, rig: Rig, k: int, progress: Progress) -> _Choosing:
    """Who decides how much is drafted, and what keeps what was learned for the next start."""
    if not config.adapts or not k:
        if k and config.adaptive is None:
            log.info("K stays at %d whatever the load; --adaptive lets it vary", k)
        return _Choosing(lambda: FixedK(k), None, lambda: None)
    key = {
        "models": f"{config.target} {config.draft} {config.drafter}",
        "dtype": config.dtype,
        "capture": str(config.capture),
    }
    table = cost_table(rig, key, progress=partial(progress, "measuring rounds"))
    return _Choosing(
        lambda: Governor(table, latency=config.latency), table, lambda: keep(rig, key, table)
    )


def _ready(
    config: EngineConfig, machine: Machine, k: int, paces: Paces, progress: Progress
) -> tuple[Rounds, Readings]:
    """Rounds and readings as the device wants them, with everything they need compiled. What is
    not recorded is timed, for `paces`."""
    device, chunk = machine.slots.limits.device, config.prefill_chunk
    if device.type != "cuda" or not config.capture:
        if device.type == "cuda":
            warm_up(machine, chunk)
        return EagerRounds(machine), EagerReadings(machine)
    ks = (0, k) if config.adaptive is False else widths(k)
    _compile(machine, ks, progress)
    rounds = CapturedRounds(machine, ks, partial(progress, "recording rounds"))
    readings = CapturedReadings(machine, partial(progress, "recording prompts' passes"))
    began = time.perf_counter()
    time_at_once(machine, chunk, paces)
    torch.cuda.synchronize(device)
    log.info(
        "read chunks of every size that is not recorded in %.1f s", time.perf_counter() - began
    )
    return rounds, readings


def _compile(machine: Machine, ks: Sequence[int], progress: Progress) -> None:
    """Have every kernel compiled, several at a time, by running everything once without them."""
    plans = every_plan(machine, ks)
    try:
        with compiling(machine.slots.limits.device), abridged():
            for done, plan in enumerate(plans.values(), 1):
                run_once(machine, plan, ks[-1])
                progress("compiling kernels", done, len(plans))
            limits = machine.slots.limits
            for rows, width in every_pass(machine):
                place = torch.zeros(3, rows, dtype=torch.int64, device=limits.device)
                rehearse(machine, width, place)
    except ImportError:
        log.debug("no triton, nothing to compile")
    except Exception:
        # It only saves time: what was not compiled here is compiled at its first launch.
        log.warning("compiling ahead broke off; going on without", exc_info=True)


def _set_threads(config: EngineConfig, machine: Machine) -> int:
    limits = machine.slots.limits
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        return config.threads
    if limits.device.type != "cpu":
        return torch.get_num_threads()
    # A verify window on the scratch page, which nobody reads.
    node = torch.arange(min(config.k + 1, limits.max_length)).unsqueeze(0)
    ids, count, size = torch.zeros_like(node), node.shape[1], limits.page_size
    pages = ids.new_zeros(1, limits.table)
    window = Window(ids, node, node % size, node >= 0, (count,), pages, size)
    target = machine.target
    return choose_threads(lambda: target.head(target.forward(window, machine.pool)[0]))
