"""Contestant: any server that speaks OpenAI's API, by its address.

Streams every text through OpenAI's own client and takes the counts of tokens from `usage`. What a
server does wrong (an error status, no answer, a stream that breaks off or is no JSON) is an answer
with an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import openai

from paceline import ConfigError
from paceline.lab.bench_ask import Answer, Ask
from paceline.lab.bench_record import Contestant, Opening, Sampling

_CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class _Seen:
    """What has come of one text so far."""

    began: float
    pieces: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    usage: Any = None

    def take(self, chunk: Any, chat: bool) -> None:
        self.usage = getattr(chunk, "usage", None) or self.usage
        for choice in chunk.choices or ():
            text = choice.delta.content if chat else choice.text
            if chat and not text:
                # Servers of models that think aloud send that part under a name of their own.
                text = getattr(choice.delta, "reasoning_content", None)
            if text:
                self.pieces.append(text)
                self.times.append(time.perf_counter() - self.began)
            self.finish = choice.finish_reason or self.finish

    def answer(self, error: str | None) -> Answer:
        prompt = getattr(self.usage, "prompt_tokens", None)
        new = getattr(self.usage, "completion_tokens", None)
        return Answer(
            text="".join(self.pieces),
            wall=time.perf_counter() - self.began,
            event_times=tuple(self.times),
            prompt_tokens=prompt if isinstance(prompt, int) else None,
            new_tokens=new if isinstance(new, int) else None,
            finish=self.finish,
            error=error,
        )


class EndpointPlayer:
    """One server. Make it with `connect`."""

    def __init__(self, contestant: Contestant, client: openai.AsyncOpenAI, model: str) -> None:
        self._contestant, self._client, self._model = contestant, client, model
        self._api = contestant.options.get("api", "auto")
        self._body = {
            name.removeprefix("body."): json.loads(text)
            for name, text in contestant.options.items()
            if name.startswith("body.")
        }
        self.served: tuple[str, ...] = ()
        self._seconds = 0.0

    @classmethod
    async def connect(cls, contestant: Contestant) -> EndpointPlayer:
        """Ask the server for its models. Raises ConfigError where there is no such server or model.

        A server without a list of models is taken at the contestant's word.
        """
        began = time.perf_counter()
        client = openai.AsyncOpenAI(
            base_url=contestant.options["url"],
            api_key=_key(contestant),
            max_retries=0,  # a second try would be measured as part of the first
            timeout=openai.Timeout(None, connect=_CONNECT_SECONDS),
        )
        player = cls(contestant, client, contestant.model)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                player.served = tuple([model.id async for model in client.models.list()])
        except (openai.APIConnectionError, TimeoutError):
            await client.close()
            raise ConfigError(f"{contestant.options['url']}: nobody answers there") from None
        # Any other answer is of a server: it may still write texts.
        except Exception as error:
            player.served = ()
            if not contestant.model:
                await client.close()
                raise ConfigError(f"{_line(error)}: give model=…") from None
        if not contestant.model:
            if len(player.served) != 1:
                await client.close()
                names = ", ".join(player.served) or "none"
                raise ConfigError(f"the server has models {names}: give model=…")
            player._model = player.served[0]
        player._seconds = time.perf_counter() - began
        return player

    @property
    def chats(self) -> bool:
        return self._api != "completions"

    async def ask(self, ask: Ask) -> Answer:
        """Stream one text; it is given up after `ask.timeout` seconds."""
        seen = _Seen(time.perf_counter())
        error = None
        try:
            async with asyncio.timeout(ask.timeout):
                await self._stream(ask, seen)
        except TimeoutError:
            error = f"no end after {ask.timeout:g} s"
        # The client and what is under it raise what they like on a stream that is none.
        except Exception as failed:
            error = _line(failed)
        if error is None and seen.finish is None:
            error = "the stream ended before the text did"
        return seen.answer(error)

    async def _stream(self, ask: Ask, seen: _Seen) -> None:
        chat = ask.prompt is None or self._api == "chat"
        fields = _fields(ask.sampling)
        extra = {**fields.pop("extra"), **self._body}
        shared: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": extra,
            **fields,
        }
        stream: Any
        if chat:
            messages: Any = [dict(m) for m in ask.messages]
            if ask.prompt is not None:
                messages = [{"role": "user", "content": ask.prompt}]
            stream = await self._client.chat.completions.create(messages=messages, **shared)
        else:
            stream = await self._client.completions.create(prompt=ask.prompt or "", **shared)
        async with stream:
            async for chunk in stream:
                seen.take(chunk, chat)

    def opening(self) -> Opening:
        facts = {"model": self._model, "serves": ", ".join(self.served)}
        return Opening(self._contestant, self._seconds, {"openai": openai.__version__}, facts)

    async def close(self) -> None:
        await self._client.close()


def _key(contestant: Contestant) -> str:
    name = contestant.options.get("key-env")
    if name is None:
        return "none"  # the client wants one, and a server without keys ignores it
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"contestant {contestant.name!r}: the variable {name} is not set")
    return key


def _fields(sampling: Sampling) -> dict[str, Any]:
    """Sampling as OpenAI's API has it; under `extra` what servers understand beyond it, and only
    where it is used, since some refuse what they do not know."""
    extra: dict[str, Any] = {}
    if sampling.top_k:
        extra["top_k"] = sampling.top_k
    if sampling.min_p:
        extra["min_p"] = sampling.min_p
    if sampling.ignore_eos:
        extra["ignore_eos"] = True
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,  # also 1: a server may have another where it is not said
        "max_tokens": sampling.max_tokens,
        "extra": extra,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields


def _line(error: BaseException) -> str:
    """An error in one line, with what it came from where it says little itself."""
    text = " ".join(str(error).split())
    cause = error.__cause__
    if isinstance(error, openai.APIConnectionError) and cause is not None:
        text = f"{text} ({type(cause).__name__}: {' '.join(str(cause).split())})"
    return f"{type(error).__name__}: {text}"[:300]
