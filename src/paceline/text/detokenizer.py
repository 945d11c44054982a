"""Ids to text, a few at a time, never half a character.

For any split of the ids into pushes the pieces join to what one decode of the whole would give.
Behind a prompt they join to what the ids add to its text, by the definition in `Detokenizer`.
Work per token is constant: bytes are decoded once, or a window of two groups is decoded again.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile

from paceline.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes in UTF-8, so also tokens
_CONTEXT = 8  # tokens of a prompt that are decoded again, to know whether a word goes on


class Detokenizer:
    """Turns one sequence's ids into text as they come.

    prompt: the ids before them. A sentencepiece tokenizer drops the space before the first word
    of a text, so a continuation of "one" by "▁two" needs to know that it is one.
    special: whether special tokens are shown, by their names.

    What is shown behind a prompt. Let T be the bytes at the prompt's end, three at most, that begin
    a character and do not finish it; none where it ends in whole characters. Shown is what T and
    the ids say together where the prompt's whole characters end, less the beginning that this has
    in common with what T says alone. So a character that T begins is shown once the ids finish it;
    where they do not, T's U+FFFD are the prompt's and are not shown again. A run of byte tokens
    begins with T: a byte that is in no character spoils its run, but no whole character of the
    prompt, and none before T spoils it.
    A byte-level tokenizer has no such runs: its ids are decoded by their own bytes alone, those
    that finish a character of the prompt as U+FFFD.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._hidden = frozenset[int]() if special else tokenizer.special_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # For tokenizers whose ids are not plain bytes: the ids from the last group shown on; how
        # many of them are shown already; and their text.
        self._window: list[int] = []
        self._shown = 0
        self._shown_text = ""
        if prompt and not tokenizer.byte_level:
            self._window = self._context(prompt)
            self._shown = len(self._window)
            self._shown_text = self._decode()

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The ids that stand for the prompt: its last ones, or where these are bytes, a token that
        ends their run, and T."""
        seen = (i for i in reversed(prompt) if not self._unseen(i))
        last = list(islice(seen, _CONTEXT))[::-1]
        run = list(takewhile(self._tokenizer.is_byte_fallback, reversed(last)))[::-1]
        if not run:
            return last
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        utf8.decode(bytes(map(self._tokenizer.fallback_byte, run)))
        unfinished, _ = utf8.getstate()
        between = self._tokenizer.word_id
        return [*([] if between is None else [between]), *run[len(run) - len(unfinished) :]]

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these ids complete; an unfinished character waits."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"".join(map(self._bytes, token_ids)))
        return "".join(map(self._push_piece, token_ids))

    def flush(self) -> str:
        """Return what is left at the end of the text; an unfinished character becomes U+FFFD."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._show() if self._shown < len(self._window) else ""

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._tokenizer.special_ids and token_id not in self._hidden:
            return (self._tokenizer.token(token_id) or "").encode()
        return self._tokenizer.token_bytes(token_id)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=not self._special)

    def _unseen(self, token_id: int) -> bool:
        """Whether a decode leaves the id out, so that the bytes around it are one run."""
        return token_id in self._hidden or self._tokenizer.token(token_id) is None

    def _push_piece(self, token_id: int) -> str:
        if self._unseen(token_id):
            return ""
        self._window.append(token_id)
        # A run of byte tokens is decoded as a whole: one bad byte spoils every character of the
        # run, so none may be shown before the run ends.
        if self._tokenizer.is_byte_fallback(token_id):
            return ""
        return self._show(final=False)

    def _show(self, final: bool = True) -> str:
        """Decode the window and return what is new; the group just shown is the next context."""
        text = self._decode()
        waiting = len(self._window) - self._shown
        if not final and text.endswith(_REPLACEMENT) and waiting < _LONGEST_CHARACTER:
            return ""
        new = _beyond(text, self._shown_text)
        del self._window[: self._shown]
        self._shown = len(self._window)
        self._shown_text = self._decode()
        return new


def _beyond(text: str, shown: str) -> str:
    """`text` without the beginning that it has in common with `shown`: all of that, but where bytes
    have finished a character that a prompt began."""
    if text.startswith(shown):
        return text[len(shown) :]
    pairs = enumerate(zip(text, shown, strict=False))
    return text[next((i for i, (one, other) in pairs if one != other), len(text)) :]
