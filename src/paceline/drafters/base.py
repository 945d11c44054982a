"""The drafter interface: the one way a proposal enters a round.

A drafter declares what it needs and proposes; it never accepts a token, never touches the
target's cache and never makes random numbers: what it draws, it draws through `Draw`. The engine
asks it nothing but `needs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from paceline.text import Tokenizer
from paceline.types import (
    Draft,
    Limits,
    MemoryPart,
    Needs,
    Request,
    Rows,
    TargetOut,
    Verdict,
    Window,
)


class Draw(Protocol):
    """Draws proposal tokens with the request's own sampling parameters and the rule's noise."""

    def step(
        self, logits: Tensor, drafted: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw one token a row after `drafted`.

        logits [B, V]; drafted [B, j] the tokens drawn so far, so that penalties see them.
        Returns tokens [B] int64 (in `out` where it is given, which saves a copy) and, where the
        rule stores q, the log-weights [B, V] they were drawn from.
        """
        ...

    def block(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw K tokens a row at once. logits [B, K, V]; returns [B, K] and [B, K, V] or None."""
        ...


class TargetText(Protocol):
    """What is known of the target's tokens before its weights are read."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer. Waits until it is loaded."""
        ...

    def tokenizer_lies_in(self, folder: Path) -> bool:
        """Whether `folder` holds the target's tokenizer, byte by byte. Waits for nothing."""
        ...


class TargetInfo(TargetText, Protocol):
    """What a drafter may borrow from the target when it is bound."""

    @property
    def vocab_size(self) -> int:
        """V, of its logits; its tokenizer may name more tokens or fewer."""
        ...

    @property
    def hidden_size(self) -> int:
        """d."""
        ...

    @property
    def layers(self) -> int:
        """How many: the highest number in `Needs.features`, whose states are what `head` takes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of features, and of what `head` takes."""
        ...

    @property
    def embedding(self) -> Tensor:
        """[V, d], the target's input embedding, read-only."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """The target's final norm and head: hidden [R, d] contiguous in `dtype` to logits [R, V],
        float32 or float64."""
        ...


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Nothing to choose."""


class Drafter(ABC):
    """Proposes up to k tokens a row. Only `propose` must be written.

    Options: a dataclass, which the constructor then takes; without one it takes nothing. That is
    how a drafter is made by its name.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    needs: Needs = Needs()

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that `Draft.source` indexes; a drafter of drafters lists its parts."""
        return (self.name,)

    # Deliberately empty rather than abstract: a stateless drafter writes only `propose`.
    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """What `bind` would take on `limits.device`, and what proposing then holds for a while of
        arrays that grow with the limits. Asked before it, for several limits, so that what cannot
        fit is refused before anything is read."""
        return ()

    def check(self, target: TargetText) -> None:  # noqa: B027
        """Raise ConfigError where it cannot draft for `target`. Called before `bind`, and before
        the target's weights are read; reads none itself."""

    def bind(self, target: TargetInfo, limits: Limits) -> None:  # noqa: B027
        """Called once before any request: allocate fixed-size buffers, load weights."""

    def admit(self, slot: int, request: Request) -> None:  # noqa: B027
        """A request took `slot`; the host may write this drafter's rows for it. Where this raises,
        that request ends: with what was raised if it is a PacelineError (RequestError, say), else
        with a StepError that names the drafter. `release` is called all the same."""

    def observe(  # noqa: B027
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        """The target has processed `window`.

        verdict is None for committed text: a prefill chunk, or, with out None too, older text
        that a drafter with `catch_up="tokens"` has not seen. Otherwise the window was verified,
        and `verdict.path[:, : verdict.n]` are the nodes that stand.
        """

    @abstractmethod
    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Propose up to k >= 1 tokens a row; `count` 0 where there is nothing to propose.

        tokens [B, k] are int64 within the vocabulary everywhere, counted or not. How many are
        proposed may not depend on what was drawn, unless the rule is `match` or nothing was
        drawn at all.
        """

    def release(self, slot: int) -> None:  # noqa: B027
        """The request in `slot` is gone."""
