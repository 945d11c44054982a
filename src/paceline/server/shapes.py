"""The two answers in OpenAI's words: completions and chats, whole and in chunks.

Pure: from texts and events to JSON objects. A new kind of answer (tool calls, reasoning) is a
change here and nowhere else in the answering.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from paceline import Event
from paceline.server import acceptance
from paceline.server.asking import Ask
from paceline.server.generation import Text
from paceline.server.pieces import Offsets, Pieces, followed
from paceline.server.reading import PartReader, Reading
from paceline.server.reasoning import reasoning_tokens
from paceline.server.tool_formats import Part

Json: TypeAlias = dict[str, object]

# OpenAI has no word for a deadline: the text was cut, as by max_tokens; stop_reason says by what.
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}


class Shape(ABC):
    """One answer's frame: its id, its time, its model; a subclass writes the choices."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, pieces: Pieces, fingerprint: str, ids: bool = False) -> None:
        """ids: whether token ids are told, under vLLM's names."""
        self._pieces, self._ids = pieces, ids
        self._id, self._created = f"{self.id_prefix}-{uuid.uuid4().hex}", int(time.time())
        self._model, self._fingerprint = model, fingerprint

    def whole(self, texts: Sequence[Text], ask: Ask) -> Json:
        """The answer in one piece."""
        choices = [self._choice(text) for text in texts]
        whole = self._frame(self.whole_object, choices) | {"usage": self.usage(ask, texts)}
        return whole | self.metrics(ask, texts)

    def usage(self, ask: Ask, texts: Sequence[Text]) -> Json:
        """Token counts, once all is read."""
        return usage(ask, texts, sum(map(self.reasoning_tokens, texts)))

    def metrics(self, ask: Ask, texts: Sequence[Text]) -> Json:
        """What came of the drafts, as a field beside the usage; none where nobody asked for it."""
        if not ask.metrics:
            return {}
        return {acceptance.KEY: acceptance.acceptance([text.stats for text in texts])}

    def reasoning_tokens(self, text: Text) -> int:
        """How many of a text's tokens are reasoning, once it is read."""
        return 0

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

    def _prompt_ids(self, text: Text) -> Json:
        """A prompt's token ids, where they are told."""
        return {"prompt_token_ids": text.prompt} if self._ids else {}

    def _token_ids(self, ids: Sequence[int]) -> Json:
        """Token ids of a text, where they are told."""
        return {"token_ids": ids} if self._ids else {}

    @abstractmethod
    def opening(self, text: Text) -> list[Json]:
        """What a choice's stream begins with, as choices of a chunk each."""

    def beside(self, text: Text) -> Json | None:
        """What the chunks of `opening` say beside their choices."""
        return None

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

    def __init__(self, model: str, pieces: Pieces, fingerprint: str, ids: bool = False) -> None:
        super().__init__(model, pieces, fingerprint, ids)
        self._offsets: dict[int, Offsets] = {}

    def opening(self, text: Text) -> list[Json]:
        if not text.echo and text.prompt_logprobs is None and not self._ids:
            return []
        entry = self._entry(text, text.echo, self._prompt(text), False)
        return [entry | self._prompt_ids(text)]

    def piece(self, text: Text, event: Event) -> list[Json]:
        logprobs = None
        if event.logprobs:
            offsets = self._offsets.setdefault(text.index, Offsets(len(text.echo)))
            logprobs = self._pieces.completion(event.logprobs, offsets)
        if not (event.text or logprobs or (self._ids and event.token_ids) or event.finish):
            return []
        entry = self._entry(text, event.text, logprobs, event.finish is not None)
        return [entry | self._token_ids(event.token_ids)]

    def silence(self, text: Text) -> Json:
        return self._entry(text, "", None, False)

    def _choice(self, text: Text) -> Json:
        logprobs = self._prompt(text)
        if text.logprobs:
            written = self._pieces.completion(text.logprobs, Offsets(len(text.echo)))
            logprobs = written if logprobs is None else followed(logprobs, written)
        entry = self._entry(text, text.echo + text.text, logprobs, True)
        return entry | self._prompt_ids(text) | self._token_ids(text.token_ids)

    def _prompt(self, text: Text) -> Json | None:
        if text.prompt_logprobs is None:
            return None
        return self._pieces.prompt(text.prompt, text.prompt_logprobs, Offsets())

    def _entry(self, text: Text, shown: str, logprobs: Json | None, last: bool) -> Json:
        entry: Json = {"text": shown, "index": text.index, "logprobs": logprobs}
        return entry | _ending(text, last)


class ChatShape(Shape):
    """`chat.completion`."""

    id_prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        pieces: Pieces,
        fingerprint: str,
        reading: Reading,
        reasoning: Sequence[str],
        ids: bool = False,
    ) -> None:
        """reasoning: the names under which that is told."""
        super().__init__(model, pieces, fingerprint, ids)
        self._reading, self._names = reading, reasoning
        self._readers: dict[int, PartReader] = {}

    def whole(self, texts: Sequence[Text], ask: Ask) -> Json:
        return super().whole(texts, ask) | self._prompt_ids(texts[0])

    def opening(self, text: Text) -> list[Json]:
        return [self._delta(text, {"role": "assistant", "content": ""})]

    def beside(self, text: Text) -> Json | None:
        return self._prompt_ids(text) or None

    def piece(self, text: Text, event: Event) -> list[Json]:
        reader = self._reader(text)
        parts = reader.feed(event.text, last=event.finish is not None)
        deltas = [self._told(text, part) for part in parts]
        logprobs = self._pieces.chat(event.logprobs) if event.logprobs else None
        ids = self._token_ids(event.token_ids) if event.token_ids else {}
        if (ids or logprobs is not None) and not deltas:
            deltas.append({"content": ""})
        chunks = [self._delta(text, delta) for delta in deltas]
        if chunks:  # what is told of the round's tokens stands with the first that came of it
            chunks[0] |= {"logprobs": logprobs, **ids}
        if event.finish is not None:
            chunks.append(self._delta(text, {}) | self._end(text, reader))
        return chunks

    def silence(self, text: Text) -> Json:
        return self._delta(text, {"content": ""})

    def reasoning_tokens(self, text: Text) -> int:
        reader, marks = self._readers.get(text.index), self._reading.marks
        if reader is None or marks is None or not reader.reasoned:
            return 0
        return reasoning_tokens(marks, [self._pieces.raw(token) for token in text.token_ids])

    def _reader(self, text: Text) -> PartReader:
        return self._readers.setdefault(text.index, PartReader(self._reading))

    def _told(self, text: Text, part: Part) -> Json:
        """A part as a stream's delta."""
        if part.kind == "content":
            return {"content": part.text}
        if part.kind == "reasoning":
            return dict.fromkeys(self._names, part.text)
        call: Json = {"index": part.index}
        if part.kind == "call":
            function: Json = {"name": part.text, "arguments": ""}
            call |= {"id": self._call_id(text, part.index), "type": "function"}
        else:
            function = {"arguments": part.text}
        return {"tool_calls": [call | {"function": function}]}

    def _call_id(self, text: Text, call: int) -> str:
        digest = hashlib.sha256(f"{self._id} {text.index} {call}".encode()).hexdigest()
        size = self._reading.id_size
        return f"call_{digest[:24]}" if size is None else digest[:size]

    def _delta(self, text: Text, delta: Json) -> Json:
        return {"index": text.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _choice(self, text: Text) -> Json:
        reader = self._reader(text)
        content, reasoning, calls = "", "", list[Json]()
        for part in reader.feed(text.text, last=True):
            if part.kind == "content":
                content += part.text
            elif part.kind == "reasoning":
                reasoning += part.text
            elif part.kind == "call":
                function: Json = {"name": part.text, "arguments": ""}
                name = self._call_id(text, part.index)
                calls.append({"id": name, "type": "function", "function": function})
            else:
                function["arguments"] = f"{function['arguments']}{part.text}"
        shown = content if content or not (reader.reasoned or calls) else None
        message: Json = {"role": "assistant", "content": shown, "refusal": None}
        if reader.reasoned:
            message |= dict.fromkeys(self._names, reasoning)
        if calls:
            message["tool_calls"] = calls
        logprobs = self._pieces.chat(text.logprobs) if text.logprobs else None
        choice: Json = {"index": text.index, "message": message, "logprobs": logprobs}
        return choice | self._end(text, reader) | self._token_ids(text.token_ids)

    @staticmethod
    def _end(text: Text, reader: PartReader) -> Json:
        end = _ending(text, True)
        if reader.calls and text.finish == "stop":
            end["finish_reason"] = "tool_calls"
        return end


def _ending(text: Text, last: bool) -> Json:
    if not last or text.finish is None:
        return {"finish_reason": None}
    reason = "deadline" if text.finish == "deadline" else text.stop_reason
    return {"finish_reason": _FINISH[text.finish], "stop_reason": reason}


def usage(ask: Ask, texts: Sequence[Text], reasoning: int) -> Json:
    """Token counts. rejected_prediction_tokens: those of the prediction that are not in the text
    by way of it (OpenAI's definition)."""
    accepted = sum(text.predicted for text in texts)
    expected = len(ask.prediction) * len(texts)
    return counts(ask, texts) | {
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": _cached(ask, texts)},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(0, expected - accepted),
        },
    }


def counts(ask: Ask, texts: Sequence[Text]) -> Json:
    """The token counts so far, of texts that are still being written."""
    written = sum(text.tokens for text in texts)
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": ask.prompt_tokens + written,
    }


def _cached(ask: Ask, texts: Sequence[Text]) -> int:
    """How many of the prompts' tokens were in the prefix cache when the request came: of a prompt
    with several choices the least, since one may have read it for the others."""
    found = iter([text.stats.cached_tokens for text in texts])
    return sum(min(next(found) for _ in seeds) for seeds in ask.seeds)
