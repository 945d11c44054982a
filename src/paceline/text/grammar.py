"""What a text may be: JSON of a schema, a regular expression, a grammar; as masks over tokens.

Wraps llguidance, which knows for a text which tokens may come next. Host only: an allowed token is
a bit in a row of int32 words, token t bit t % 32 of word t // 32.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from paceline.errors import RequestError, needs_extra
from paceline.text.budget import Budget, Budgeted
from paceline.text.tokenizer import Tokenizer
from paceline.types import Constraint, Grammar

_SHOWN = 300  # characters of an error of llguidance
_KEPT = 64  # compiled grammars: a service asks for the same few again and again
_STATES = 50_000  # of the automaton behind one text; some kilobytes each
_LONGEST = 128 << 10  # characters; llguidance takes more than in proportion for a long schema
# What llguidance puts behind the words of an error, for its own developers.
_DETAILS = re.compile(r"\s*<(?:state|backtrace|non-verbose).*", re.DOTALL)


class Grammars:
    """Compiles grammars for one tokenizer. Made when the first one is asked for; for any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """vocab_size: of the model, which may have more tokens than the tokenizer, or less (of
        those none is ever allowed). eos_ids: the tokens that end a text. Raises RequestError where
        llguidance is not installed."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise RequestError(f"a grammar {needs_extra('llguidance', 'grammar')}") from None
        self._matcher: Any = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(max_lexer_states=_STATES, verbose_errors=False)
        most = max(vocab_size, len(tokenizer))
        self._tokens = llguidance.hf.from_tokenizer(
            tokenizer.fast, n_vocab=most, eos_token=list(eos_ids) or None
        )
        self._special = {tokenizer.token(i) or "": i for i in tokenizer.special_ids}
        self._words, self._vocab_size = -(-most // 32), vocab_size
        self._tokenizer = tokenizer
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Constraint:
        """What `grammar` allows. Raises RequestError, which says what is wrong with it.

        Takes seconds for the largest; one that was compiled lately costs a copy.
        """
        if grammar.budget is None and grammar.kind != "any":
            return self._matched(grammar)
        if not grammar.after or grammar.budget is None or grammar.budget < 0:
            raise RequestError(
                "a grammar's budget is a number of tokens, at least 0, of what stands before "
                "`after`; and the kind any has both"
            )
        bound = None if grammar.kind == "any" else self._matched(replace(grammar, budget=None))
        return Budgeted(Budget(self._tokenizer, grammar), bound, -(-self._vocab_size // 32))

    def _matched(self, grammar: Grammar) -> Matcher:
        with self._lock:
            made = self._kept.get(grammar)
        if made is None:
            made = self._made(grammar)
        with self._lock:
            self._kept[grammar] = made
            self._kept.move_to_end(grammar)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return Matcher(made.deep_copy(), self._words, self._vocab_size, grammar.kind)

    def _made(self, grammar: Grammar) -> Any:
        if len(grammar.text) > _LONGEST:
            raise _refused(grammar.kind, f"it is longer than {_LONGEST} characters")
        try:
            compiled = self._compiled(grammar)
            made = self._matcher(self._tokens, compiled, log_level=0, limits=self._limits)
        except (ValueError, TypeError, RecursionError) as error:
            raise _refused(grammar.kind, str(error)) from None
        if made.is_error():
            raise _refused(grammar.kind, made.get_error())
        # The first mask shows what the grammar alone does not: that nothing fulfils it, or that it
        # asks for more work than a token may cost.
        mask = torch.zeros(self._words, dtype=torch.int32)
        made.unsafe_compute_mask_ptr(mask.data_ptr(), 4 * self._words)
        if made.is_error() or not mask.any():
            raise _refused(grammar.kind, made.get_error() or "no text fulfils it")
        return made

    def _compiled(self, grammar: Grammar) -> str:
        make = self._matcher
        if grammar.kind == "regex":
            inner = str(make.grammar_from_regex(grammar.text))
        elif grammar.kind == "lark":
            inner = json.dumps({"grammars": [{"lark_grammar": grammar.text}]})
        else:
            # Without spaces that nobody asked for: a model may write those for ever.
            defaults = {"whitespace_flexible": False}
            schema = grammar.text if grammar.kind == "json_schema" else '{"type": "object"}'
            json.loads(schema)
            inner = str(make.grammar_from_json_schema(schema, defaults=defaults))
        if not grammar.after:
            return inner
        bound = json.loads(inner)["grammars"][0] | {"name": "bound"}
        return json.dumps({"grammars": [{"lark_grammar": self._behind(grammar)}, bound]})

    def _behind(self, grammar: Grammar) -> str:
        """The Lark grammar of free text up to `after`, and then what is bound."""
        end, lead = self._special.get(grammar.after), "lead"
        if end is None:
            mark = re.escape(grammar.after).replace("/", "\\/")
            rules = [f"free[lazy]: /(.|\\n)*{mark}/"]  # up to the first one
        else:
            rules = ["free: TEXT " + f"<[{end}]>", "TEXT: /(.|\\n)*/"]
        if grammar.opened_by:
            begin = self._special.get(grammar.opened_by)
            opens = json.dumps(grammar.opened_by) if begin is None else f"<[{begin}]>"
            rules.append(f"lead: {opens} free SPACE")
            lead = "lead?"
        else:
            rules.append("lead: free SPACE")
        return "\n".join([f"start: {lead} @bound", *rules, "SPACE: /[ \\n]{0,4}/", ""])


class Matcher:
    """How far one text has come in its grammar: see `types.Constraint`."""

    ends = True

    def __init__(self, inner: Any, words: int, vocab_size: int, kind: str) -> None:
        """words: of a mask over the tokenizer's tokens, of which the model has `vocab_size`."""
        self._inner, self._words, self._kind = inner, words, kind
        self._vocab_size = vocab_size

    def masks(self, drafted: Sequence[int]) -> Tensor:
        """int32 [n + 1, words], n = len(drafted): the tokens that may come after the text and the
        first i of `drafted`. Behind a draft token that may not come all is allowed: nobody gets
        there. Raises RequestError where the grammar cannot be followed any further."""
        out = torch.full((len(drafted) + 1, self._words), -1, dtype=torch.int32)
        # A copy goes along the draft: some grammars (max_tokens= in Lark) cannot be taken back.
        inner = self._inner.deep_copy() if drafted else self._inner
        for place in range(len(drafted) + 1):
            row = out[place]
            inner.unsafe_compute_mask_ptr(row.data_ptr(), 4 * self._words)
            if inner.is_error():  # and the mask ends the text, as if it were whole
                raise _refused(self._kind, inner.get_error(), "could not be followed to its end")
            if place == len(drafted) or not inner.try_consume_tokens([drafted[place]]):
                break
        return out[:, : -(-self._vocab_size // 32)]

    def commit(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`."""
        self._inner.try_consume_tokens(list(tokens))

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice and the model has them."""
        if self._inner.is_stopped():
            return []
        return list(takewhile(self._vocab_size.__gt__, self._inner.compute_ff_tokens()))


def _refused(kind: str, why: str, what: str = "cannot be used") -> RequestError:
    reason = " ".join(_DETAILS.sub("", why).split())[:_SHOWN]
    reason = reason.replace("NoExtensionBias", "no text fulfils it")
    return RequestError(f"the {kind.replace('_', ' ')} {what}: {reason}")
