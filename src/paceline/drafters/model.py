"""A smaller language model with the target's tokenizer, drafting one token after the other.

Keeps its own cache at the target's addresses. It is brought up to date from committed tokens
alone: every proposal begins with a chunk of fixed width over the newest of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.drafters.base import Drafter, Draw, TargetInfo, TargetText
from paceline.errors import ConfigError
from paceline.kv.pools import KVPool
from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder
from paceline.models.opening import decoder_memory, open_decoder
from paceline.models.source import Source, find
from paceline.ops.bookkeeping import tail_and_ahead
from paceline.speculation.window import step
from paceline.text import Tokenizer
from paceline.text.likeness import added_differences, difference
from paceline.types import Draft, Limits, MemoryPart, Needs, Rows, TargetOut, Verdict, Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """path: a checkpoint folder, a hub id or a bundled model's name. dtype: its weights."""

    path: str
    dtype: str = "bfloat16"


class ModelDrafter(Drafter):
    """Drafts autoregressively with a `Decoder` of its own."""

    name: ClassVar[str] = "model"
    Options: ClassVar[type[ModelOptions]] = ModelOptions

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self._found: tuple[Source, ModelConfig] | None = None
        self._model: Decoder
        self._pool: KVPool

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """Its weights and its cache. Raises CheckpointError where there is no such model."""
        _, config = self._find()
        return decoder_memory("draft", config, self.options.dtype, limits, steady=False)

    def check(self, target: TargetText) -> None:
        """Raises CheckpointError, or ConfigError where its ordinary tokens are not the target's."""
        folder = self._find()[0].folder
        if not target.tokenizer_lies_in(folder):
            self._compare(target.tokenizer, Tokenizer.load(folder))

    def bind(self, target: TargetInfo, limits: Limits) -> None:
        """Load the model."""
        source, _ = self._find()
        self._model = open_decoder(
            source, self.options.dtype, limits.device, limits.max_length, steady=False
        )
        self._vocab = target.vocab_size
        self._numbers = torch.arange(limits.max_k + 1, device=limits.device)
        self._pool = KVPool(self._model.spec, limits.pages, limits.page_size, limits.device)
        self.needs = Needs(kv=self._model.spec, catch_up="tokens")

    def _compare(self, theirs: Tokenizer, own: Tokenizer) -> None:
        """Refuse a draft whose ids are other words; of added tokens only tell."""
        path, other = self.options.path, difference(theirs, own)
        if other is not None:
            raise ConfigError(
                f"the draft {path!r} has another tokenizer than the target ({other}): choose "
                "a draft made for this target"
            )
        added = added_differences(theirs, own)
        if added:
            log.warning(
                "the draft %r has %d added tokens that are not the target's, the first: %s; "
                "drafts may be wrong where these stand, the text is what it is",
                path,
                len(added),
                added[0],
            )

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        """Write the cache for committed text; verified windows are caught up by `propose`."""
        if verdict is None:
            self._model.forward(self._known(window), self._pool)

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Draft k tokens a row, always k: tokens [B, k]."""
        width = rows.fresh + 1
        newest, places = tail_and_ahead(rows, width, k)
        hidden = self._model.forward(self._known(newest), self._pool)[0]
        hidden = hidden.view(-1, width, hidden.shape[-1])[:, -1].contiguous()  # [B, d]
        batch = rows.length.shape[0]
        drafted = rows.length.new_empty(k, batch).t()  # [B, k], each node's tokens side by side
        scores: list[Tensor] = []
        for node in range(k):
            logits = fit(self._model.head(hidden), self._vocab)
            token, score = draw.step(logits, drafted[:, :node], out=drafted[:, node])
            if score is not None:
                scores.append(score)
            if node + 1 < k:
                hidden = self._model.forward(step(places, node, token), self._pool)[0]
        stored = torch.stack(scores, 1) if scores else None  # [B, k, V]
        count, source = self._numbers[k].expand(batch), self._numbers[0].expand(batch)
        return Draft(drafted, count, source, stored)

    def _find(self) -> tuple[Source, ModelConfig]:
        """The model, found once: whoever sizes an engine asks for its memory many times."""
        if self._found is None:
            source = find(self.options.path)
            self._found = source, ModelConfig.from_folder(source.folder)
        return self._found

    def _known(self, window: Window) -> Window:
        """The window in tokens that the draft has: of a few that only the target has, its last one
        is as good as any. What it makes of them costs acceptance, never the text."""
        if self._model.vocab_size >= self._vocab:
            return window
        return replace(window, ids=window.ids.clamp(max=self._model.vocab_size - 1))


def fit(logits: Tensor, vocab_size: int) -> Tensor:
    """Cut or pad logits [B, V'] to [B, vocab_size]: models of one tokenizer pad it differently."""
    missing = vocab_size - logits.shape[-1]
    if missing == 0:
        return logits
    return F.pad(logits, (0, missing), value=float("-inf"))
