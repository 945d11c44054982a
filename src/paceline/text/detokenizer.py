"""Ids to text, a few at a time, never half a character.

For any split of the ids into pushes the pieces join to what one decode of the whole would give.
Work per token is constant: bytes are decoded once, or a window of two groups is decoded again.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from paceline.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes in UTF-8, so also tokens


class Detokenizer:
    """Turns one sequence's ids into text as they come.

    context: the last ids of the prompt. A sentencepiece tokenizer drops the space before the
    first word of a text, so a continuation of "one" by "▁two" needs to know that it is one.
    special: whether special tokens are shown, by their names.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int] = (), special: bool = False
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
        if context and not tokenizer.byte_level:
            self._window = [i for i in context if i not in self._hidden]
            self._shown = len(self._window)
            self._shown_text = self._decode()

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

    def _push_piece(self, token_id: int) -> str:
        if token_id in self._hidden:
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
        new = text[len(self._shown_text) :]
        del self._window[: self._shown]
        self._shown = len(self._window)
        self._shown_text = self._decode()
        return new
