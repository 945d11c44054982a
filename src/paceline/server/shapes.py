"""The two answers in OpenAI's words: completions and chats, whole and in chunks.

Pure: from texts and events to JSON objects. A new kind of answer (tool calls, reasoning) is a
change here and nowhere else in the answering.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from paceline import Event
from paceline.server.asking import Ask
from paceline.server.generation import Text
from paceline.server.pieces import Offsets, Pieces

Json: TypeAlias = dict[str, object]

# OpenAI has no word for a deadline: the text was cut, as by max_tokens; stop_reason says by what.
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}


class Shape(ABC):
    """One answer's frame: its id, its time, its model; a subclass writes the choices."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, pieces: Pieces, fingerprint: str) -> None:
        self._pieces = pieces
        self._id, self._created = f"{self.id_prefix}-{uuid.uuid4().hex}", int(time.time())
        self._model, self._fingerprint = model, fingerprint

    def whole(self, texts: Sequence[Text], usage: Json) -> Json:
        """The answer in one piece."""
        choices = [self._choice(text) for text in texts]
        return self._frame(self.whole_object, choices) | {"usage": usage}

    def chunk(self, choices: list[Json]) -> Json:
        """A piece of a stream; without choices it is the one that carries the usage."""
        return self._frame(self.chunk_object, choices)

    def _frame(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
        }

    @abstractmethod
    def opening(self, text: Text) -> list[Json]:
        """What a choice's stream begins with, as choices of a chunk each."""

    @abstractmethod
    def piece(self, text: Text, event: Event) -> list[Json]:
        """What one event adds, as choices of a chunk each; none where there is nothing to show."""

    @abstractmethod
    def silence(self, text: Text) -> Json:
        """A choice that adds nothing, for a chunk that says something else."""

    @abstractmethod
    def _choice(self, text: Text) -> Json: ...


class CompletionShape(Shape):
    """`text_completion`."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, model: str, pieces: Pieces, fingerprint: str) -> None:
        super().__init__(model, pieces, fingerprint)
        self._offsets: dict[int, Offsets] = {}

    def opening(self, text: Text) -> list[Json]:
        return [self._entry(text, text.echo, None, False)] if text.echo else []

    def piece(self, text: Text, event: Event) -> list[Json]:
        logprobs = None
        if event.logprobs:
            offsets = self._offsets.setdefault(text.index, Offsets(len(text.echo)))
            logprobs = self._pieces.completion(event.logprobs, offsets)
        if not event.text and logprobs is None and event.finish is None:
            return []
        return [self._entry(text, event.text, logprobs, event.finish is not None)]

    def silence(self, text: Text) -> Json:
        return self._entry(text, "", None, False)

    def _choice(self, text: Text) -> Json:
        logprobs = None
        if text.logprobs:
            logprobs = self._pieces.completion(text.logprobs, Offsets(len(text.echo)))
        return self._entry(text, text.echo + text.text, logprobs, True)

    def _entry(self, text: Text, shown: str, logprobs: Json | None, last: bool) -> Json:
        entry: Json = {"text": shown, "index": text.index, "logprobs": logprobs}
        return entry | _ending(text, last)


class ChatShape(Shape):
    """`chat.completion`."""

    id_prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def opening(self, text: Text) -> list[Json]:
        return [self._delta(text, {"role": "assistant", "content": ""}, None, False)]

    def piece(self, text: Text, event: Event) -> list[Json]:
        logprobs = self._pieces.chat(event.logprobs) if event.logprobs else None
        chunks = []
        if event.text or logprobs is not None:
            chunks.append(self._delta(text, {"content": event.text}, logprobs, False))
        if event.finish is not None:
            chunks.append(self._delta(text, {}, None, True))
        return chunks

    def silence(self, text: Text) -> Json:
        return self._delta(text, {"content": ""}, None, False)

    def _delta(self, text: Text, delta: Json, logprobs: Json | None, last: bool) -> Json:
        return {"index": text.index, "delta": delta, "logprobs": logprobs} | _ending(text, last)

    def _choice(self, text: Text) -> Json:
        logprobs = self._pieces.chat(text.logprobs) if text.logprobs else None
        message: Json = {"role": "assistant", "content": text.text, "refusal": None}
        return {"index": text.index, "message": message, "logprobs": logprobs} | _ending(text, True)


def _ending(text: Text, last: bool) -> Json:
    if not last or text.finish is None:
        return {"finish_reason": None}
    reason = "deadline" if text.finish == "deadline" else text.stop_reason
    return {"finish_reason": _FINISH[text.finish], "stop_reason": reason}


def usage(ask: Ask, texts: Sequence[Text]) -> Json:
    """Token counts. rejected_prediction_tokens: those of the prediction that are not in the text
    by way of it (OpenAI's definition)."""
    written = sum(text.tokens for text in texts)
    accepted = sum(text.predicted for text in texts)
    expected = len(ask.prediction) * len(texts)
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": ask.prompt_tokens + written,
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(0, expected - accepted),
        },
    }
