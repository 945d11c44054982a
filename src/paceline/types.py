"""The types that cross module edges, and who may change them.

Index letters: B rows in a round, K draft tokens, W = K + 1 window, V vocabulary, S slots,
L positions. *Device values* are frozen bundles of tensors with fixed shapes; *host* types hold
plain Python. Nothing here imports another module of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
RuleName = Literal["match", "reject", "block"]

# The columns of `Verdict.report` behind the tokens.
REPORT = ("n", "drafted", "source", "accepted", "evaluated", "ended", "failed", "length")


# --- host, frozen ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw one request's text. Defaults: greedy, up to 256 tokens.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repetition_penalty (1 is off) counts prompt and output; presence_penalty and
    frequency_penalty (0 is off) count the output alone. logit_bias: token id to a number added
    to its logit. seed: None draws one. min_tokens: no end-of-sequence or stop before that many.
    stop: strings that end the text and are not shown; a special token's name ends it also where
    the text leaves special tokens out, and under ignore_eos. stop_token_ids: token ids that end it.
    logprobs: None, or how many most likely tokens to report beside the chosen one (0 to 20).
    processed_logprobs: of what the token was drawn from, after biases, penalties, grammar,
    temperature and truncation (greedily: of a certainty), and not the model's own.
    skip_special_tokens: leave them out of the text; shown, they stand there by name.
    include_stop_str_in_output: the text ends with the stop string that was met, and shows it.
    stop_after: the text begins with what stop does not count in, through this mark (such as
    `</think>`) and the space behind it; stop_opened_by: that only where it begins with this mark.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    processed_logprobs: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    stop_after: str = ""
    stop_opened_by: str = ""

    @property
    def penalized(self) -> bool:
        """Whether any penalty is on, so that token counts matter."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def truncated(self) -> bool:
        """Whether top-k, top-p or min-p removes tokens."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must be. text: a JSON schema, a regular expression or a Lark grammar; nothing
    for any JSON object.

    after: free text comes first, through this mark (such as `</think>`), and what is behind it is
    bound; opened_by: that only where the text begins with this mark, else all of it is bound.
    budget: the most tokens of that free text before `after` is what comes, or None. The kind "any"
    binds nothing else.
    """

    kind: Literal["json_schema", "json_object", "regex", "lark", "any"]
    text: str = ""
    after: str = ""
    opened_by: str = ""
    budget: int | None = None


class Constraint(Protocol):
    """A grammar and how far one text has come in it; see `text.grammar.Matcher`. ends: whether it
    says where the text ends."""

    @property
    def ends(self) -> bool: ...
    def masks(self, drafted: Sequence[int]) -> Tensor: ...
    def commit(self, tokens: Sequence[int]) -> None: ...
    def forced(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write. `prediction` is text the user expects, as token ids, or empty. Higher
    priorities go first; deadline: when writing ends, on `time.monotonic`'s clock; constraint: the
    grammar that binds it, or None."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    prediction: tuple[int, ...] = ()
    priority: int = 0
    deadline: float | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class KVSpec:
    """What one model keeps per position: layers x (K and V) x heads x head_dim.

    bundle: key heads that lie side by side in the cache and share one matrix product.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    bundle: int = 1


@dataclass(frozen=True, slots=True)
class Needs:
    """What a drafter declares, so that the engine never asks what it is.

    features: target layers whose hidden states it reads (0 is the embedding); with catch_up
    "observe" alone, as they are gone after the round.
    kv: the cache it keeps at the target's addresses, or None; a mix takes one such part. Behind
    every window's end there is room for a draft, as long as drafts may be.
    host: `propose` or `observe` reads the device or computes on the host. Such rounds cannot be
    recorded, so on a GPU it needs capture=False.
    most: the most tokens it ever proposes, or None where it follows what is asked; 0 makes every
    round plain decoding.
    shift: how many tokens behind a position its cache at that position depends on.
    catch_up: "tokens" if it can be brought up to date from committed tokens alone; "observe"
    if it must be shown every window (its state comes from target features); "none" if it keeps
    no state of its own.
    """

    features: tuple[int, ...] = ()
    kv: KVSpec | None = None
    host: bool = False
    most: int | None = None
    shift: int = 0
    catch_up: Literal["none", "tokens", "observe"] = "none"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that every buffer is made for, known once at start. Slot 0 and page 0 are scratch.

    A text of `max_length` positions has `table` pages of `page_size` each, which lie anywhere.
    """

    slots: int
    max_length: int
    max_k: int
    vocab_size: int
    pages: int
    page_size: int
    device: torch.device

    @property
    def table(self) -> int:
        """Pages that one text can have: the columns of a page table."""
        return -(-self.max_length // self.page_size)

    @property
    def positions(self) -> int:
        """Positions that the caches hold for all texts together."""
        return (self.pages - 1) * self.page_size

    @property
    def texts(self) -> float:
        """How many of the longest texts that is."""
        return (self.pages - 1) / self.table


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Bytes that something will take on the device, under the name that users read. fixed: they do
    not depend on `Limits`, as those of weights."""

    name: str
    size: int
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """Which stages of the distribution any row of this batch needs (host-known, static).

    A stage that is off for every row is the identity, so leaving it out changes no value.
    draws: some row has a temperature above 0. penalties, bias, truncation: some row uses them.
    top_k, top_p: where truncation is on, some row uses this one (True is always safe).
    min_tokens: some row may still be below its minimum. logprobs: most top tokens asked, or -1.
    mask: some row is bound by a grammar. processed: some row's log-probabilities are of what it
    was drawn from.
    """

    draws: bool = False
    penalties: bool = False
    bias: bool = False
    truncation: bool = False
    top_k: bool = True
    top_p: bool = True
    min_tokens: bool = False
    logprobs: int = -1
    mask: bool = False
    processed: bool = False


# --- device values ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal. tokens [B, K] int64; count [B] int64 (0 is plain decoding); source [B] int64,
    the index of the drafter that proposed the row; scores [B, K, V] the log-weights each token
    was drawn from, or None for a proposal without choice (q is one-hot); parents [B, K] or None
    for a chain."""

    tokens: Tensor
    count: Tensor
    source: Tensor
    scores: Tensor | None = None
    parents: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass of a model sees. ids, position, address [B, W] int64, valid [B, W].

    position is the depth in the text; address is where the node's K and V are written (scratch
    for a node that is not valid). bounds: per row the host's upper bound of positions. pages [B, P]
    int64: position p of a row lies at pages[p // page_size] · page_size + p % page_size in every
    cache. ancestors [B, W, W] or None for a chain.
    """

    ids: Tensor
    position: Tensor
    address: Tensor
    valid: Tensor
    bounds: tuple[int, ...]
    pages: Tensor
    page_size: int
    ancestors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TargetOut:
    """logits [B, W, V]; features: per layer named in `Needs.features`, hidden states [B, W, d]."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms. chosen [B, W]; top_ids, top [B, W, n]."""

    chosen: Tensor
    top_ids: Tensor
    top: Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule decided, cut at the end of the sequence and at the limit.

    tokens [B, W]; n [B] tokens committed (accepted + 1 before the cut; 0 for an idle row); path
    [B, W] the window node after which each token stands; drafted, source [B] the draft's count
    and drafter; accepted [B] draft tokens that were committed; evaluated [B] draft tokens the
    rule tested, up to the cut; ended [B] the row goes idle; failed [B] it met logits that are not
    finite or wholly masked. report [B, W + 8] int64: the tokens, then the columns `REPORT`, all
    that the host reads in one piece; length is that of the committed text, these tokens included.
    """

    tokens: Tensor
    n: Tensor
    path: Tensor
    drafted: Tensor
    source: Tensor
    accepted: Tensor
    evaluated: Tensor
    ended: Tensor
    failed: Tensor
    report: Tensor
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """What a drafter may read of the slots between two windows, one entry per row of the round.

    index [B] slot numbers; tokens [S, L] the whole token matrix, never gathered: read it through
    `index`; length [B] committed tokens, the last of which is the next window's root; bounds,
    pages, page_size as in `Window`. committed: how many tokens, at most, were committed since the
    last proposal; fresh: how many of them, at most, are not that proposal's own (both static
    bounds).
    """

    index: Tensor
    tokens: Tensor
    length: Tensor
    bounds: tuple[int, ...]
    pages: Tensor
    page_size: int
    committed: int
    fresh: int


# --- host reports ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability, and the most likely tokens at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round did for one request. k: draft tokens that it was to verify, as chosen (what
    a grammar forces is not); drafted: those that there were; evaluated, accepted: of these, up to
    the end of the text, as in `SequenceStats`; drafter: who proposed them, or None where there were
    none; seconds: wall clock, from its launch, or from the end of the round before it, until the
    host had its tokens."""

    k: int
    drafted: int
    evaluated: int
    accepted: int
    drafter: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of one request's text: the tokens that one round committed.

    sources: per token the drafter that proposed it, or "target". finish is None until the last
    event, whose `text` may be longer or shorter than its tokens (text held back for a stop
    string; a stop text not shown). pieces: `text` split by token; a token that completes no
    character has an empty one, and what it began belongs to the token that completes it. round:
    None for an event without a round, the end of a text that was ended from outside.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    sources: tuple[str, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    pieces: tuple[str, ...] = ()
    round: RoundReport | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text, or one that was ended: `finish` says why. sources: as in `Event`."""

    request_id: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    text: str
    sources: tuple[str, ...]
    finish: FinishReason
    stop_reason: str | int | None
    seed: int
    logprobs: tuple[TokenLogprob, ...] | None
    stats: SequenceStats


@dataclass(slots=True)
class SequenceStats:
    """Counts over rounds of one request or one engine. Seconds are wall clock.

    accepted / evaluated is the acceptance rate (evaluated: drafted tokens whose predecessors
    were all accepted); accepted / drafted the draft efficiency; emitted / rounds tokens a round.
    cached_tokens: of prompt_tokens, those that the prefix cache spared. queue_seconds: until it had
    a slot for the first time. wasted_seconds: of draft_seconds the share of the draft tokens that
    were not accepted, and of verify_seconds that of the window positions which held them.
    """

    rounds: int = 0
    drafted: int = 0
    evaluated: int = 0
    accepted: int = 0
    emitted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    wasted_seconds: float = 0.0
    evaluated_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    accepted_by_source: dict[str, int] = field(default_factory=dict)
    evaluated_by_source: dict[str, int] = field(default_factory=dict)
    drafted_by_source: dict[str, int] = field(default_factory=dict)

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / evaluated, or None where nothing was evaluated."""
        return self.accepted / self.evaluated if self.evaluated else None

    @property
    def draft_efficiency(self) -> float | None:
        """accepted / drafted, or None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_round(self) -> float | None:
        """Committed tokens a round, or None before the first round."""
        return self.emitted / self.rounds if self.rounds else None


@dataclass(slots=True)
class EngineStats(SequenceStats):
    """The counts over all requests, round by round, and how things stand.

    rounds and seconds are the engine's own: those of a round count once, however many texts it
    serves. rounds_by_k[k]: rounds that verified up to k draft tokens a text. finished, waiting,
    running: requests; preemptions: how often one gave its pages back.
    cache_tokens: positions that the caches hold; cache_texts: in texts of the longest. pages: of
    the cache, in all; used: held by requests; cached: kept for later ones. prefix_asked,
    prefix_hits: prompt tokens looked up in the prefix cache, and found there. speculation: what is
    done about drafting and why, in words.
    """

    finished: int = 0
    waiting: int = 0
    running: int = 0
    preemptions: int = 0
    cache_tokens: int = 0
    cache_texts: float = 0.0
    pages: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    prefix_asked: int = 0
    prefix_hits: int = 0
    rounds_by_k: list[int] = field(default_factory=list)
    speculation: str = ""
