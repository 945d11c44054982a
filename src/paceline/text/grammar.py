"""What a text may be: JSON of a schema, a regular expression, a grammar; as masks over tokens.

Wraps llguidance, which knows for a text which tokens may come next. Host only: an allowed token is
a bit in a row of int32 words, token t bit t % 32 of word t // 32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paceline.errors import RequestError
from paceline.text.tokenizer import Tokenizer
from paceline.types import Grammar

_SHOWN = 300  # characters of an error of llguidance


class Grammars:
    """Compiles grammars for one tokenizer. Made when the first one is asked for."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """vocab_size: of the model, which may have more tokens than the tokenizer. eos_ids: the
        tokens that end a text. Raises RequestError where llguidance is not installed."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise RequestError(
                "grammars need llguidance: pip install 'paceline[grammar]'"
            ) from None
        self._matcher: Any = llguidance.LLMatcher
        self._tokens = llguidance.hf.from_tokenizer(
            tokenizer.fast, n_vocab=vocab_size, eos_token=list(eos_ids) or None
        )
        self._words = -(-vocab_size // 32)

    def compile(self, grammar: Grammar) -> Matcher:
        """What `grammar` allows. Raises RequestError, which says what is wrong with it."""
        try:
            compiled = self._compiled(grammar)
            matcher = self._matcher(self._tokens, compiled)
        except (ValueError, TypeError, RecursionError) as error:
            raise _refused(grammar, str(error)) from None
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        return Matcher(matcher, self._words)

    def _compiled(self, grammar: Grammar) -> str:
        make = self._matcher
        if grammar.kind == "regex":
            return str(make.grammar_from_regex(grammar.text))
        if grammar.kind == "lark":
            return str(make.grammar_from_lark(grammar.text))
        # Without spaces that nobody asked for: a model may write those for ever.
        defaults = {"whitespace_flexible": False}
        schema = grammar.text if grammar.kind == "json_schema" else '{"type": "object"}'
        json.loads(schema)
        return str(make.grammar_from_json_schema(schema, defaults=defaults))


class Matcher:
    """How far one text has come in its grammar: see `types.Constraint`."""

    def __init__(self, inner: Any, words: int) -> None:
        self._inner, self._words = inner, words

    def masks(self, drafted: Sequence[int]) -> Tensor:
        """int32 [n + 1, words], n = len(drafted): the tokens that may come after the text and the
        first i of `drafted`. Behind a draft token that may not come all is allowed: nobody gets
        there."""
        out = torch.full((len(drafted) + 1, self._words), -1, dtype=torch.int32)
        taken = 0
        for place in range(len(drafted) + 1):
            row = out[place]
            self._inner.unsafe_compute_mask_ptr(row.data_ptr(), 4 * self._words)
            if place == len(drafted) or not self._inner.try_consume_tokens([drafted[place]]):
                break
            taken += 1
        if taken:
            self._inner.rollback(taken)
        return out

    def commit(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`."""
        self._inner.try_consume_tokens(list(tokens))

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice."""
        return [] if self._inner.is_stopped() else list(self._inner.compute_ff_tokens())


def _refused(grammar: Grammar, why: str) -> RequestError:
    reason = " ".join(why.split())[:_SHOWN]
    return RequestError(f"the {grammar.kind.replace('_', ' ')} cannot be used: {reason}")
