"""A lead of so many tokens at most, such as a model's reasoning: then the mark that ends it comes.

A constraint like a grammar's, over one or over none. Host only; as there, a token is a bit of a
mask, and a copy goes along the draft, so that what may come never depends on what is drafted.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.errors import RequestError
from paceline.text.lead import Lead
from paceline.text.tokenizer import Tokenizer
from paceline.types import Constraint, Grammar


class Budget:
    """How many tokens of the lead one text has written, and what of the mark must come."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar) -> None:
        """grammar: with `after` and `budget`. Raises RequestError where the vocabulary cannot write
        `after`."""
        assert grammar.after
        assert grammar.budget is not None
        self._tokenizer, self._most, self._count = tokenizer, grammar.budget, 0
        self._mark = tokenizer.encode_on(grammar.after)
        if not "".join(map(self._text, self._mark)).endswith(_spelled(grammar.after)):
            message = (
                f"this model's vocabulary cannot write {grammar.after!r}: leave the budget out"
            )
            raise RequestError(message)
        self._lead = Lead(_spelled(grammar.after), _spelled(grammar.opened_by))
        self._open = b""  # of a character that is not finished
        self._left = self._due()

    @property
    def must(self) -> list[int]:
        """The tokens that must come next; none where there is a choice."""
        return self._left

    def take(self, token: int) -> None:
        """The text goes on with `token`."""
        inside, text = self._lead.inside, self._text(token)
        self._lead.feed(text, armed=True, last=False)
        self._count += inside
        self._open = _unfinished(self._open + text.encode("latin-1"))
        self._left = self._left[1:] if self._left[:1] == [token] else self._left
        if not self._lead.inside:
            self._left = []
        elif not self._left:
            self._left = self._due()

    def copy(self) -> Budget:
        made = Budget.__new__(Budget)
        made.__dict__ |= self.__dict__
        made._lead = self._lead.copy()
        return made

    def _due(self) -> list[int]:
        """The mark, once the budget is spent and no character is cut by it: that would be no text,
        which nothing that binds it would take."""
        over = self._lead.inside and self._count >= self._most and not self._open
        return self._mark if over else []

    def _text(self, token: int) -> str:
        """A token's bytes, a character each: a mark may be split over tokens anywhere."""
        tokenizer, name = self._tokenizer, self._tokenizer.token(token) or ""
        if token in tokenizer.special_ids:
            return _spelled(name)
        if tokenizer.byte_level:
            return tokenizer.token_bytes(token).decode("latin-1")
        if tokenizer.is_byte_fallback(token):
            return chr(tokenizer.fallback_byte(token))
        return _spelled(name.replace("\u2581", " "))


class Budgeted:
    """`types.Constraint` of a budget, and of what binds the text besides."""

    def __init__(self, budget: Budget, inner: Constraint | None, words: int) -> None:
        """words: of a mask over the model's tokens."""
        self._budget, self._inner, self._words = budget, inner, words

    @property
    def ends(self) -> bool:
        return self._inner is not None and self._inner.ends

    def masks(self, drafted: Sequence[int]) -> Tensor:
        """See `Matcher.masks`."""
        if self._inner is None:
            out = torch.full((len(drafted) + 1, self._words), -1, dtype=torch.int32)
        else:
            out = self._inner.masks(drafted)
        budget = self._budget.copy()
        for place in range(len(drafted) + 1):
            if must := budget.must:
                out[place] &= _only(must[0], self._words)
            if place < len(drafted):
                if must and drafted[place] != must[0]:
                    break  # nobody gets there
                budget.take(drafted[place])
        return out

    def commit(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`."""
        for token in tokens:
            self._budget.take(token)
        if self._inner is not None:
            self._inner.commit(tokens)

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice."""
        if must := self._budget.must:
            return list(must)
        return [] if self._inner is None else self._inner.forced()


def _only(token: int, words: int) -> Tensor:
    bits = torch.zeros(words, dtype=torch.int64)
    bits[token // 32] = 1 << token % 32
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int()


def _unfinished(written: bytes) -> bytes:
    """The bytes at the end that begin a character."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    utf8.decode(written)
    return utf8.getstate()[0]


def _spelled(text: str) -> str:
    return text.encode().decode("latin-1")
