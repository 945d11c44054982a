"""From logits to the distribution a token is drawn from: one function, for target and drafter.

Pure tensor functions over [B, W, V]; knows nothing of drafts being accepted, of slots or text.
A distribution is log-weights ("scores"): unnormalised, −inf where a token is removed. Greedy is
the one-hot distribution, not another path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.speculation.truncation import truncate
from paceline.types import Logprobs, SamplingFlags

NEG_INF = float("-inf")


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Sampling parameters of the rows of a batch.

    temperature, top_p, min_p, repetition, presence, frequency [B] floating; top_k [B] int64 (0
    is off); bias_ids [B, N] int64 and bias_values [B, N] (an id at most once; padding: id 0,
    value 0.0); stop_ids [B, M] int64 (padding −1); min_position [B] int64: a token at an
    absolute position below it may not be a stop id; processed [B] bool: log-probabilities are
    reported of what is drawn from.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    stop_ids: Tensor
    min_position: Tensor
    processed: Tensor


@dataclass(frozen=True, slots=True)
class History:
    """What the penalties count, per row.

    prompt_seen [B, V] bool; counts [B, V] integer: committed output tokens, the root included
    if it is one. window_ids [B, N] int64: the root and the draft nodes, 0..N-1; ancestors
    [B, W, N] bool, which nodes stand before or at each queried node, or None for a chain whose
    last W nodes are queried (a drafter's step asks for one of them, the target for all). Node 0
    is the root, counted already. Ids of padding nodes must lie in the vocabulary.
    """

    prompt_seen: Tensor
    counts: Tensor
    window_ids: Tensor
    ancestors: Tensor | None = None


def allowed(logits: Tensor, mask: Tensor) -> Tensor:
    """Return logits [B, W, V] with the tokens that are not allowed at −inf.

    mask [B, W, ceil(V / 32)] int32: token t is allowed where bit t % 32 of word t // 32 is set.
    """
    bit = torch.arange(32, dtype=torch.int32, device=mask.device)
    bits = (mask.unsqueeze(-1) >> bit) & 1  # [B, W, words, 32]; the sign bit is shifted in, masked
    return logits.masked_fill(bits.flatten(2)[..., : logits.shape[-1]] == 0, NEG_INF)


def distribution(
    logits: Tensor,
    params: SamplingTensors,
    flags: SamplingFlags,
    position: Tensor,
    history: History | None = None,
    one_hot: bool = True,
) -> Tensor:
    """Return scores [B, W, V] from logits [B, W, V] (float32 or float64, left untouched).

    position [B, W] int64: absolute, of the token being drawn. history: needed where
    flags.penalties. Order: logit bias, minimum length, penalties, temperature, top-k, top-p,
    min-p. Stages whose flag is off are the identity for every row and are skipped. The best
    token of a row has score 0, which keeps scores + noise precise at low temperatures.

    one_hot: False where the scores are only ever compared (rule match): with nothing drawn they
    are then returned before the one-hot is made of them. That is no other code path: the argmax
    of a one-hot is the argmax of what it was made from, and `draw` takes the argmax either way.
    """
    x = adjusted(logits, params, flags, position, history)
    if not flags.draws:
        return _one_hot(x) if one_hot else x
    greedy = (params.temperature <= 0).view(-1, 1, 1)
    temperature = params.temperature.to(x.dtype).view(-1, 1, 1)
    scores = x.sub(x.amax(-1, keepdim=True)).div_(temperature.masked_fill(greedy, 1.0))
    if flags.truncation:
        scores = truncate(
            scores,
            params.top_k if flags.top_k else None,
            params.top_p if flags.top_p else None,
            params.min_p,
        )
    return torch.where(greedy, _one_hot(x), scores)


def adjusted(
    logits: Tensor,
    params: SamplingTensors,
    flags: SamplingFlags,
    position: Tensor,
    history: History | None = None,
) -> Tensor:
    """Return logits after the first stages of `distribution`, those before temperature."""
    assert logits.dtype in (torch.float32, torch.float64), "cast the logits first"
    x = logits
    if flags.bias:
        x = _add_bias(x, params)
    if flags.min_tokens:
        x = _mask_stops(x, params, position)
    if flags.penalties:
        assert history is not None, "penalties need the history"
        x = _penalize(x, params, history)
    return x


def _add_bias(x: Tensor, params: SamplingTensors) -> Tensor:
    """Add bias_values [B, N] at bias_ids; padding adds 0 to token 0."""
    ids = params.bias_ids.unsqueeze(1).expand(-1, x.shape[1], -1)
    values = params.bias_values.to(x.dtype).unsqueeze(1).expand_as(ids)
    return x.scatter_add(2, ids, values)


def _mask_stops(x: Tensor, params: SamplingTensors, position: Tensor) -> Tensor:
    """Set the stop ids to −inf where the token drawn would come before min_position."""
    early = position < params.min_position.unsqueeze(1)  # [B, W]
    masked = early.unsqueeze(2) & (params.stop_ids >= 0).unsqueeze(1)  # [B, W, M]
    ids = params.stop_ids.clamp(min=0).unsqueeze(1).expand_as(masked)
    values = torch.zeros_like(masked, dtype=x.dtype).masked_fill_(masked, NEG_INF)
    return x.scatter_add(2, ids, values)


def _penalty(
    x: Tensor, seen: Tensor, counts: Tensor, rates: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return x less its penalties; all arguments broadcast.

    Repetition divides a positive and multiplies a negative logit of a token seen in prompt or
    output (Keskar et al. 2019, section 4.1, as transformers does); presence and frequency
    subtract once, and once a time, for tokens of the output (OpenAI's definition).
    """
    repetition, presence, frequency = rates
    factor = torch.where(seen, repetition, torch.ones_like(repetition))
    cost = counts * frequency + (counts > 0) * presence
    return torch.where(x < 0, x * factor, x / factor).sub_(cost)


def _penalize(x: Tensor, params: SamplingTensors, history: History) -> Tensor:
    """Apply the penalties with, for each node, the window's tokens before it counted.

    The committed counts are applied to the whole vocabulary once; then the at most N tokens of
    the window are computed again with their counts at each node and put in their place. A token
    that stands twice in the window is written twice with the same value.
    """
    b, w, _ = x.shape
    ids = history.window_ids
    n = ids.shape[1]
    columns = (params.repetition, params.presence, params.frequency)
    rates = tuple(r.to(x.dtype).view(b, 1, 1) for r in columns)
    rates = (rates[0], rates[1], rates[2])
    counts = history.counts.to(x.dtype)  # [B, V]
    seen = history.prompt_seen | (history.counts > 0)
    out = _penalty(x, seen.unsqueeze(1), counts.unsqueeze(1), rates)
    if n == 1:
        return out
    before = history.ancestors
    if before is None:
        before = torch.ones(w, n, dtype=torch.bool, device=x.device).tril(n - w).expand(b, w, n)
    same = ids[:, 1:].unsqueeze(2) == ids[:, 1:].unsqueeze(1)  # [B, N-1, N-1]
    extra = before[:, :, 1:].to(x.dtype) @ same.to(x.dtype)  # [B, W, N-1]
    at = ids[:, 1:].unsqueeze(1).expand(b, w, n - 1)
    now = counts.gather(1, ids[:, 1:]).unsqueeze(1) + extra
    known = history.prompt_seen.gather(1, ids[:, 1:]).unsqueeze(1) | (now > 0)
    return out.scatter_(2, at, _penalty(x.gather(2, at), known, now, rates))


def one_hot_scores(tokens: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Return the scores of a choice that was none: 0 at tokens [B, K], else −inf, [B, K, V]."""
    scores = torch.full((*tokens.shape, vocab_size), NEG_INF, dtype=dtype, device=tokens.device)
    return scores.scatter_(-1, tokens.unsqueeze(-1), 0.0)


def _one_hot(x: Tensor) -> Tensor:
    """Return 0 at the argmax (the lowest id on ties), −inf elsewhere.

    Where the maximum is not finite the one entry is NaN, so that `failed` sees it.
    """
    best, index = x.max(-1, keepdim=True)
    return torch.full_like(x, NEG_INF).scatter_(2, index, best * 0.0)


def probabilities(scores: Tensor) -> Tensor:
    """Return softmax(scores) over the vocabulary."""
    return scores.softmax(-1)


def draw(scores: Tensor, gumbel: Tensor | None) -> Tensor:
    """Return a token for each score vector: argmax(scores + gumbel), int64 [B, W].

    gumbel [B, W, V], or None only where every row is greedy.
    """
    return (scores if gumbel is None else scores + gumbel).argmax(-1)


def failed(logits: Tensor, scores: Tensor) -> Tensor:
    """Return [B, W] bool: the logits hold NaN or +inf, or no token is left to draw.

    logits [B, W, V] as the model gave them, scores as `distribution` made them. The maximum of a
    vector with a NaN is NaN, so one pass tells.
    """
    bad = ~logits.amax(-1).isfinite()
    if scores is not logits:
        bad |= ~scores.amax(-1).isfinite()
    return bad


def reported(logits: Tensor, scores: Tensor, params: SamplingTensors) -> Tensor:
    """Return what log-probabilities are told of, [B, W, V]: the model's logits, before bias, masks,
    penalties and temperature; in rows that ask for it the `scores` that the token was drawn from,
    which of a greedy row are a certainty."""
    greedy, processed = (x.view(-1, 1, 1) for x in (params.temperature <= 0, params.processed))
    drawn = torch.where(greedy, _one_hot(scores), scores)
    return torch.where(processed, drawn.to(logits.dtype), logits)


def top_logprobs(logits: Tensor, tokens: Tensor, n: int) -> Logprobs:
    """Return log-probabilities of `tokens` and of the n likeliest, from what `reported` says.

    logits [B, W, V]; tokens [B, W] int64, those chosen; n >= 0, how many of the most likely.
    """
    total = logits.logsumexp(-1, keepdim=True)  # [B, W, 1]
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).sub_(total).squeeze(-1)
    top, ids = logits.topk(n, dim=-1)
    return Logprobs(chosen=chosen, top_ids=ids, top=top.sub_(total))
