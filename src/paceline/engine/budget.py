"""Does it fit, how long may texts be, and how many positions do the caches hold: the device's
memory, shared out before anything is read.

Host only: sums over sizes that are known from configurations. Knows no drafter, only what one
says that it will take. What is held for a while is `engine.work`'s to estimate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from paceline.config import EngineConfig
from paceline.drafters import Drafter
from paceline.engine.slots import slots_bytes
from paceline.engine.work import work_bytes
from paceline.errors import CheckpointError, ConfigError
from paceline.models.config import ModelConfig
from paceline.models.memory import describe, free_bytes, too_little, total
from paceline.models.opening import decoder_memory, parse_dtype
from paceline.ops.attention import BLOCK
from paceline.speculation.verify import RULES
from paceline.types import Limits, MemoryPart

log = logging.getLogger(__name__)

_GIB = 2**30
CPU_LENGTH = 4096  # positions, where nobody says how many
STEP = 256  # where the model's own length does not fit, texts are sized in these
# Texts at once where nobody says how many; on a GPU the first with which the longest text keeps its
# share of what it is with the last.
CPU_SLOTS = 4
GPU_SLOTS = (16, 8, 4)
_KEPT = 7 / 8


@dataclass(frozen=True, slots=True)
class Budget:
    """What is to be opened and how large. free: bytes that were there before."""

    limits: Limits
    parts: tuple[MemoryPart, ...]
    free: int

    @property
    def slots(self) -> int:
        """Texts at once: all slots but the scratch."""
        return self.limits.slots - 1


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to be shared out: bytes that are free on a device, which need not be here."""

    device: torch.device
    free: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def plan_memory(
    config: EngineConfig, model: ModelConfig, drafter: Drafter, room: Room | None = None
) -> Budget:
    """Size everything for `config`. On a GPU, unless `cache_tokens` says otherwise, the cache takes
    its share of what all else leaves, up to one longest text in every slot, one at least; texts
    are as long as the model's own, where that is left open, or as one that fits. Where `slots` is
    left open, it is decided here: `Budget.slots` says how many there are. room: instead of what is
    free on the device of `config`.

    Raises CheckpointError, which lists every part, where the device has too little, and
    ConfigError for a cache that cannot hold one text.
    """
    if room is None:
        device = torch.device(config.device)
        room = Room(device, free_bytes(device))
    lengths = _lengths(config, model, room)

    def sized(slots: int) -> _Sizes:
        return _Sizes(config, model, drafter, room, slots)

    budget, fewest = None, config.slots or CPU_SLOTS
    if config.slots is None and room.on_gpu:
        budget, fewest = _decided(sized, lengths), 1
    else:
        budget = sized(fewest).best(lengths)
    if budget is None:
        sizes = sized(fewest)
        raise _refusal(config, sizes, sizes.sized(lengths[1], sizes.pages(lengths[1])[0]))
    limits = budget.limits
    log.info(
        "%d texts of up to %d positions, %d in the cache (%.1f of the longest): "
        "%.2f GiB (%s) of %.2f free on %s",
        budget.slots,
        limits.max_length,
        limits.positions,
        limits.texts,
        total(budget.parts) / _GIB,
        describe(budget.parts),
        budget.free / _GIB,
        room.device,
    )
    return budget


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What an engine of so many slots takes by how long texts may be and how many pages the caches
    have."""

    config: EngineConfig
    model: ModelConfig
    drafter: Drafter
    room: Room
    slots: int

    @property
    def shared(self) -> bool:
        """Whether the cache is given a share of what is left, and not what somebody asked for."""
        return self.config.cache_tokens is None and self.room.on_gpu

    def pages(self, length: int) -> tuple[int, int]:
        """The fewest and the most pages for texts of up to `length` positions. On a GPU: enough
        for one of the longest, to enough for one in every slot; on a CPU the latter."""
        if self.config.cache_tokens is not None:
            asked = _pages(self.config.cache_tokens)
            return asked, asked
        one = _pages(length)
        return one if self.shared else one * self.slots, one * self.slots

    def sized(self, length: int, pages: int) -> Budget:
        """Everything for texts of up to `length` positions and that many pages to give out."""
        limits = Limits(
            slots=self.slots + 1,  # one slot and one page more are scratch
            max_length=length,
            max_k=max(1, self.config.k),
            vocab_size=self.model.vocab_size,
            pages=pages + 1,
            page_size=BLOCK,
            device=self.room.device,
        )
        parts = _parts(self.config, self.model, self.drafter, limits)
        return Budget(limits, parts, self.room.free)

    def shares(self, length: int) -> tuple[int, int]:
        """Bytes of all that does not depend on how many pages there are, and those that the pages
        may take beside it."""
        rest = total(self.sized(length, 0).parts)
        left = self.room.free - rest
        return rest, int(left * self.config.memory) if self.shared else left

    def fitting(self, length: int) -> Budget | None:
        """The most pages that fit, with everything else; None where not even the fewest do."""
        rest, room = self.shares(length)

        def fits(pages: int) -> bool:
            return total(self.sized(length, pages).parts) - rest <= room

        least, most = self.pages(length)
        return self.sized(length, _greatest(least, most, fits)) if fits(least) else None

    def best(self, lengths: tuple[int, int]) -> Budget | None:
        """The plan with the longest texts, from how long they are to be down to what is settled
        for; None where nothing fits."""
        wanted, least = lengths
        budget = self.fitting(wanted)
        return self.longest(wanted) if budget is None and least < wanted else budget

    def longest(self, most: int) -> Budget | None:
        """The longest texts below `most` of which one fits, in steps, with the most pages for such
        texts; None where not even one of a step does."""

        def fits(steps: int) -> bool:
            rest, room = self.shares(steps * STEP)
            least = self.sized(steps * STEP, self.pages(steps * STEP)[0])
            return total(least.parts) - rest <= room

        steps = _greatest(0, (most - 1) // STEP, fits)
        return self.fitting(steps * STEP) if steps else None


def _lengths(config: EngineConfig, model: ModelConfig, where: Room) -> tuple[int, int]:
    """How long texts are to be, and what is settled for where that does not fit. Raises
    ConfigError where the cache that was asked for is too small."""
    room = None if config.cache_tokens is None else _pages(config.cache_tokens) * BLOCK
    if config.max_length is not None:
        if room is not None and config.max_length > room:
            raise ConfigError(
                f"cache_tokens {config.cache_tokens} cannot hold one text of max_length "
                f"{config.max_length}: give cache_tokens of at least {config.max_length}, or a "
                f"max_length of at most {room}"
            )
        return config.max_length, config.max_length
    length = model.max_length if room is None else min(model.max_length, room)
    if not where.on_gpu:
        length = min(length, CPU_LENGTH)
        return length, length
    return length, min(length, STEP)


def _decided(sized: Callable[[int], _Sizes], lengths: tuple[int, int]) -> Budget | None:
    """The plan with the most slots of `GPU_SLOTS` that leaves the longest text nearly what it has
    with the fewest of them; where not even these fit, with as many as do. None where none fits."""
    few = sized(GPU_SLOTS[-1]).best(lengths)
    if few is None:
        fewer = range(GPU_SLOTS[-1] - 1, 0, -1)
        return next((plan for n in fewer if (plan := sized(n).best(lengths)) is not None), None)
    for slots in GPU_SLOTS[:-1]:
        budget = sized(slots).best(lengths)
        if budget is not None and budget.limits.max_length >= _KEPT * few.limits.max_length:
            return budget
    return few


def _pages(positions: int) -> int:
    return -(-positions // BLOCK)


def _greatest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The greatest number up to `high` that fits; `low` is known to, and what fits has no gaps."""
    if low == high or fits(high):
        return high
    while high - low > 1:  # `high` does not fit
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _refusal(config: EngineConfig, sizes: _Sizes, budget: Budget) -> CheckpointError:
    limits, remedies, note = budget.limits, [], ""
    if sizes.shared and total(budget.parts) <= budget.free:
        room = sizes.shares(limits.max_length)[1]
        note = f"memory {config.memory:g} leaves {room / _GIB:.2f} of it to the cache: "
        remedies.append(f"memory above {config.memory:g}")
    if limits.pages - 1 > limits.table:
        remedies.append(f"cache_tokens below {limits.positions}")
    if config.max_length is not None or limits.device.type == "cpu":
        remedies.append("a shorter max_length")
    if sizes.slots > 1:
        remedies.append("fewer slots")
    if parse_dtype(config.dtype).itemsize > 2:
        remedies.append("dtype bfloat16")
    remedy = f"{note}use {', '.join([*remedies, 'smaller models'])} or another device"
    what = (
        f"{config.target} with {sizes.slots} slots, texts of {limits.max_length} positions and "
        f"{limits.positions} in the cache"
    )
    return too_little(what, budget.parts, budget.free, limits.device, remedy)


def _parts(
    config: EngineConfig, model: ModelConfig, drafter: Drafter, limits: Limits
) -> tuple[MemoryPart, ...]:
    compute = torch.promote_types(parse_dtype(config.dtype), torch.float32)
    stores_q = RULES[config.rule].needs_q
    target = decoder_memory("target", model, config.dtype, limits)
    own = drafter.memory(limits)
    return (
        target[0],
        *(part for part in own if part.fixed),
        target[1],
        *(part for part in own if not part.fixed),
        MemoryPart("slots", slots_bytes(limits, stores_q, compute)),
        MemoryPart("work space", work_bytes(config, model, drafter.needs, limits)),
    )
