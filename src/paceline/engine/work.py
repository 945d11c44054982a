"""What an engine holds on its device for a while: a round's numbers, a prompt's chunk, and what
recorded rounds stand on. Estimates, on the high side, from configurations alone.
"""

from __future__ import annotations

import torch

from paceline.config import EngineConfig
from paceline.engine.capture import LEVELS, widths
from paceline.engine.catch_up import SIDE, TOGETHER
from paceline.engine.readings import passes
from paceline.engine.slots import MAX_BIAS, MAX_STOP_IDS
from paceline.models.config import ModelConfig
from paceline.models.decoder import kv_spec
from paceline.models.opening import parse_dtype
from paceline.speculation.verify import RULES
from paceline.types import KVSpec, Limits, Needs

# Numbers of the logits' size that exist at once while a round is judged with everything on
# (scores, a sort with its indices, masks), and those that a rule which weighs q against p has
# besides.
_LOGITS, _LOGITS_Q = 10, 6
_ATTENTION_PARTS = 17  # what `ops.device_attention` keeps of a head's sums, at its 16 streams
_GRAPH = 256 * 2**10  # of the driver's memory a graph takes, beside its tensors
_RUNTIME = 384 * 2**20  # on a GPU: compiled kernels, the libraries' work space, rounding up


def work_bytes(config: EngineConfig, model: ModelConfig, needs: Needs, limits: Limits) -> int:
    """Bytes that a round or a prompt's chunk holds, whichever is more; on a GPU both, as recorded
    rounds have memory of their own. needs: the drafter's, as far as it is known."""
    kind, on_gpu = parse_dtype(config.dtype), limits.device.type == "cuda"
    item = torch.promote_types(kind, torch.float32).itemsize
    sizes = _sizes(limits) if on_gpu else [limits.slots - 1]
    nodes = sizes[-1] * (config.k + 1)
    copies = _LOGITS + (_LOGITS_Q if RULES[config.rule].needs_q else 0)
    judged = nodes * model.vocab_size * item * copies
    columns = 3 * model.intermediate_size + 8 * max(model.hidden_size, model.heads * model.head_dim)
    chunk = min(config.prefill_chunk, limits.max_length)
    passed = max(nodes, chunk) * columns * item
    spec = kv_spec(model, kind, limits.device)
    reading = passed + _attention_bytes(model, spec, kind, limits, max(chunk, config.k + 1))
    if not on_gpu:
        return max(judged, reading)
    # Twice what is judged: a pool cut up by graphs of many sizes has gaps.
    return 2 * judged + reading + _kept_bytes(config, model, needs, limits, sizes) + _RUNTIME


def _attention_bytes(
    model: ModelConfig, spec: KVSpec, kind: torch.dtype, limits: Limits, width: int
) -> int:
    """What one layer's attention of a wide window holds at the end of the longest text."""
    positions, item = limits.table * limits.page_size, spec.dtype.itemsize
    windows = len(set(model.windows))
    copied = 2 * positions * model.kv_heads * model.head_dim * item  # pages, put together
    if spec.bundle > 1 or kind is torch.float64 or (limits.device.type == "cpu" and item < 4):
        # Torch's own form: scores and masks of a bundle's heads.
        heads = spec.bundle * model.heads // model.kv_heads
        return copied + width * heads * positions * (windows + 3 * item)
    if limits.device.type == "cpu":
        return 0  # compiled kernels read pages where they lie
    if not any(model.windows):
        return copied
    # Masks, as bools, numbers and what is added to scores; keys that are cleaned first.
    return 3 * copied + width * positions * (windows + 4 + 2 * item)


def _kept_bytes(
    config: EngineConfig, model: ModelConfig, needs: Needs, limits: Limits, sizes: list[int]
) -> int:
    """What rounds keep on a GPU: their rows' constants with page tables, attention's work space,
    and what the driver keeps of every graph."""
    # One batch a size, and those on their way there.
    batches = (sum(sizes) + 3 * sizes[-1]) * row_bytes(limits)
    ks = {0, config.k} if config.adaptive is False else widths(config.k)
    inner = model.heads * model.head_dim
    read = passes(limits.max_length) if config.capture else ()
    together = [SIDE << i for i in range(1, TOGETHER.bit_length())] if config.capture else []
    nodes = max(sizes[-1] * (config.k + 1), *read, *together, 0)
    arena = nodes * model.heads * _ATTENTION_PARTS * (model.head_dim + 8) * 4
    kept = sum(sizes) * sum(k + 1 for k in ks) + sum(read) + sum(together)
    out = kept * (inner * 4 + model.heads * 4)
    graphs = 0
    if config.capture:
        # A window, and the drafts that may follow one, or each, of them.
        drafts = len(ks) ** 2 if needs.catch_up == "observe" else len(ks)
        graphs = len(sizes) * len(LEVELS) * (len(ks) + drafts) + 2 * len(read) + len(together)
    return batches + 2 * (arena + out) + graphs * _GRAPH  # twice: a draft model has its own


def row_bytes(limits: Limits) -> int:
    """Bytes of one row of a `Batch`, at most."""
    return 8 * (limits.table + MAX_STOP_IDS + 16) + 12 * MAX_BIAS


def _sizes(limits: Limits) -> list[int]:
    """Rows of the rounds that are recorded: the powers of two up to all slots but the scratch."""
    return [1 << i for i in range((limits.slots - 2).bit_length() + 1)]
