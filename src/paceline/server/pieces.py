"""Single tokens as clients see them: their bytes, their text, and their log-probabilities.

OpenAI's are the model's own, before temperature, bias, masks and penalties; so are the engine's.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from paceline import TokenLogprob

_LEAST = -9999.0  # what OpenAI writes for a probability of nothing; JSON has no infinity


class Vocabulary(Protocol):
    """What is asked of the engine's tokenizer."""

    @property
    def byte_level(self) -> bool: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    def token(self, token_id: int) -> str | None: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def is_byte_fallback(self, token_id: int) -> bool: ...


class Pieces:
    """The bytes of tokens, remembered."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._special = vocabulary, vocabulary.special_ids
        self._known: dict[int, bytes] = {}

    def raw(self, token_id: int) -> bytes:
        """A token's bytes; a special token's are its name."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._bytes(token_id)
        return known

    def _bytes(self, token_id: int) -> bytes:
        vocabulary = self._vocabulary
        spelled = vocabulary.token(token_id) or ""
        if token_id in self._special:
            return spelled.encode()
        if vocabulary.byte_level:
            return vocabulary.token_bytes(token_id)
        if vocabulary.is_byte_fallback(token_id):
            return bytes([int(spelled[3:5], 16)])
        return spelled.replace("\u2581", " ").encode()

    def name(self, token_id: int) -> str:
        """A token's text; one that is no text by itself is spelled `bytes:\\xe2\\x82`."""
        raw = self.raw(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    # --- the two formats ---

    def chat(self, items: Sequence[TokenLogprob]) -> dict[str, object]:
        """A chat's `logprobs`."""
        content = [
            self._entry(item.token_id, item.logprob)
            | {"top_logprobs": [self._entry(token, value) for token, value in item.top]}
            for item in items
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, object]:
        raw = self.raw(token_id)
        return {
            "token": raw.decode(errors="replace"),
            "logprob": _finite(logprob),
            "bytes": list(raw),
        }

    def completion(self, items: Sequence[TokenLogprob], offsets: Offsets) -> dict[str, object]:
        """A completion's `logprobs`: columns, the chosen token among the most likely."""
        tops = []
        for item in items:
            top = {self.name(token): _finite(value) for token, value in item.top}
            tops.append(top | {self.name(item.token_id): _finite(item.logprob)})
        return {
            "tokens": [self.name(item.token_id) for item in items],
            "token_logprobs": [_finite(item.logprob) for item in items],
            "top_logprobs": tops if any(item.top for item in items) else None,
            "text_offset": [offsets.step(self.raw(item.token_id)) for item in items],
        }

    def prompt(
        self, ids: Sequence[int], items: Sequence[TokenLogprob], offsets: Offsets
    ) -> dict[str, object]:
        """A prompt's `logprobs` in the same columns: its first token has none."""
        rest = self.completion(items, Offsets())
        values, tops, special = rest["token_logprobs"], rest["top_logprobs"], self._special
        assert isinstance(values, list)
        assert tops is None or isinstance(tops, list)
        return {
            "tokens": [self.name(token) for token in ids],
            "token_logprobs": [None, *values],
            "top_logprobs": None if tops is None and items else [None, *(tops or ())],
            # A special token is not in the text that is repeated.
            "text_offset": [
                offsets.step(b"" if token in special else self.raw(token)) for token in ids
            ],
        }


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST


def followed(first: dict[str, object], more: dict[str, object]) -> dict[str, object]:
    """Two `logprobs` of a completion as one."""
    joined: dict[str, object] = {}
    for name, column in first.items():
        other = more[name]
        known = isinstance(column, list) and isinstance(other, list)
        joined[name] = [*column, *other] if known else None  # type: ignore[misc]
    return joined


class Offsets:
    """Where each token of a text begins, in characters; a token inside one counts as before it."""

    def __init__(self, start: int = 0) -> None:
        self._at = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, raw: bytes) -> int:
        at = self._at
        self._at += len(self._utf8.decode(raw))
        return at
