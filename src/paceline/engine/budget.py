"""Does it fit, and how long may texts be: the device's memory, shared out before anything is read.

Host only: sums over sizes that are known from configurations. Knows no drafter, only what one
says that it will take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from paceline.config import EngineConfig
from paceline.drafters import Drafter
from paceline.engine.slots import slots_bytes
from paceline.errors import CheckpointError
from paceline.models.config import ModelConfig
from paceline.models.memory import describe, free_bytes, too_little, total
from paceline.models.opening import decoder_memory, parse_dtype
from paceline.ops.attention import BLOCK
from paceline.speculation.verify import RULES
from paceline.types import Limits, MemoryPart

log = logging.getLogger(__name__)

_GIB = 2**30
CPU_LENGTH = 4096  # positions, where nobody says how many
STEP = 256  # max_length is sized in these, and one of them is the least

# Estimates, on the high side. Numbers of the logits' size that exist at once while a round is
# judged with everything on (scores, a sort with its indices, masks), and those that a rule which
# weighs q against p has besides.
_LOGITS, _LOGITS_Q = 10, 6
_ATTENTION_PARTS = 17  # what `ops.device_attention` keeps of a head's sums, at its 16 streams
_RUNTIME = 256 * 2**20  # on a GPU: compiled kernels, and the graphs themselves


@dataclass(frozen=True, slots=True)
class Budget:
    """What is to be opened and how large. free: bytes that were there before."""

    limits: Limits
    parts: tuple[MemoryPart, ...]
    free: int


def plan_memory(config: EngineConfig, model: ModelConfig, drafter: Drafter) -> Budget:
    """Size everything for `config`; where it leaves max_length open and there is a GPU, take the
    longest that fits, up to the model's own.

    Raises CheckpointError, which lists every part, where the device has too little.
    """
    device = torch.device(config.device)
    free = free_bytes(device)

    def sized(length: int) -> Budget:
        limits = make_limits(config, model, length)
        return Budget(limits, _parts(config, model, drafter, limits), free)

    if config.max_length is None and device.type == "cuda":
        longest = _longest(sized, model.max_length, config.memory)
        if longest is None:
            raise _refusal(config, sized(min(STEP, model.max_length)))
        budget = longest
    else:
        budget = sized(config.max_length or min(model.max_length, CPU_LENGTH))
        if total(budget.parts) > free:
            raise _refusal(config, budget)
    log.info(
        "%d texts of up to %d positions: %.2f GiB (%s) of %.2f free on %s",
        config.slots,
        budget.limits.max_length,
        total(budget.parts) / _GIB,
        describe(budget.parts),
        free / _GIB,
        device,
    )
    return budget


def make_limits(config: EngineConfig, model: ModelConfig, max_length: int) -> Limits:
    """Sizes for texts of up to max_length positions; one slot and one page more are scratch."""
    return Limits(
        slots=config.slots + 1,
        max_length=max_length,
        max_k=max(1, config.k),
        vocab_size=model.vocab_size,
        pages=_pool(config, max_length) // BLOCK + 1,
        page_size=BLOCK,
        device=torch.device(config.device),
    )


def _pool(config: EngineConfig, max_length: int) -> int:
    """Positions that the caches hold, in whole pages."""
    longest = -(-max_length // BLOCK) * BLOCK
    if config.cache_tokens is None:
        return config.slots * longest
    return -(-config.cache_tokens // BLOCK) * BLOCK


def _longest(sized: Callable[[int], Budget], most: int, share: float) -> Budget | None:
    """The longest that fits in `share` of what the fixed parts leave, or None."""

    def fits(budget: Budget) -> bool:
        fixed = sum(part.size for part in budget.parts if part.fixed)
        return total(budget.parts) - fixed <= share * (budget.free - fixed)

    whole = sized(most)
    if fits(whole):
        return whole
    low, high = 0, -(-most // STEP)  # in steps: `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sized(middle * STEP)) else (low, middle)
    return sized(low * STEP) if low else None


def _refusal(config: EngineConfig, budget: Budget) -> CheckpointError:
    remedies = []
    if config.max_length is not None or budget.limits.device.type == "cpu":
        remedies.append("a shorter max_length")
    elif config.memory < 1:
        remedies.append(f"memory above {config.memory:g}")
    if config.slots > 1:
        remedies.append("fewer slots")
    if parse_dtype(config.dtype).itemsize > 2:
        remedies.append("dtype bfloat16")
    remedy = f"use {', '.join([*remedies, 'smaller models'])} or another device"
    length = budget.limits.max_length
    what = f"{config.target} with {config.slots} slots of {length} positions"
    return too_little(what, budget.parts, budget.free, budget.limits.device, remedy)


def _parts(
    config: EngineConfig, model: ModelConfig, drafter: Drafter, limits: Limits
) -> tuple[MemoryPart, ...]:
    compute = torch.promote_types(parse_dtype(config.dtype), torch.float32)
    stores_q = RULES[config.rule].needs_q
    target = decoder_memory("target", config.target, config.dtype, limits)
    own = drafter.memory(limits)
    return (
        target[0],
        *(part for part in own if part.fixed),
        target[1],
        *(part for part in own if not part.fixed),
        MemoryPart("slots", slots_bytes(limits, stores_q, compute)),
        MemoryPart("work space", _work_bytes(config, model, limits, compute)),
    )


def _work_bytes(
    config: EngineConfig, model: ModelConfig, limits: Limits, compute: torch.dtype
) -> int:
    """An estimate of what a round or a prompt's chunk holds for a while, whichever is more."""
    on_gpu = limits.device.type == "cuda"
    # Recorded rounds have a power of two of rows.
    rows = 1 << (config.slots - 1).bit_length() if on_gpu else config.slots
    rows *= config.k + 1
    item = compute.itemsize
    copies = _LOGITS + (_LOGITS_Q if RULES[config.rule].needs_q else 0)
    judged = rows * model.vocab_size * item * copies
    columns = 3 * model.intermediate_size + 8 * max(model.hidden_size, model.heads * model.head_dim)
    chunk = min(config.prefill_chunk, limits.max_length)
    widest = max(rows, chunk) * columns * item
    # A chunk's mask, where windows slide.
    masks = chunk * limits.max_length * item if any(model.windows) else 0
    if not on_gpu:
        return max(judged, widest + masks)
    kept = rows * model.heads * _ATTENTION_PARTS * (model.head_dim + 2) * 4
    # A prompt's pages, copied together for one layer's attention.
    size = parse_dtype(config.dtype).itemsize
    pieces = 2 * limits.table * limits.page_size * model.kv_heads * model.head_dim * size
    # Graphs have a pool of their own, so what stands in one of them exists beside the rest.
    return 2 * judged + widest + masks + pieces + 2 * kept + _RUNTIME
