"""Contestant: a paceline engine in this process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from paceline import (
    Engine,
    Handle,
    PacelineError,
    SequenceStats,
    __version__,
    sampling_params,
)
from paceline.lab.bench_ask import Answer, Ask
from paceline.lab.bench_gpu import used
from paceline.lab.bench_record import (
    Contestant,
    Opening,
    RoundCounts,
    Sampling,
    SourceCounts,
    TimeSpent,
)
from paceline.lab.bench_spec import engine_config
from paceline.types import SamplingParams


class PacelinePlayer:
    """One engine. Open it where it is used: it is the process's own."""

    def __init__(self, contestant: Contestant, texts: int, once: bool) -> None:
        """texts: how many are asked for at once, at most; once: no prompt comes a second time, so
        that keeping what was read of one cannot spare reading another. Raises PacelineError."""
        options: dict[str, Any] = {"slots": texts, "seed": 0}
        if not once:
            options["prefix_cache"] = False
        began = time.perf_counter()
        self._engine = Engine(**(options | engine_config(contestant)))
        self._seconds = time.perf_counter() - began
        self._contestant = contestant

    @property
    def chats(self) -> bool:
        return self._engine.tokenizer.has_chat_template

    async def ask(self, ask: Ask) -> Answer:
        """Write one text; it is cancelled after `ask.timeout` seconds."""
        prompt: Any = ask.prompt if ask.prompt is not None else [dict(m) for m in ask.messages]
        times: list[float] = []
        tokens: list[int] = []
        error = None
        began = time.perf_counter()
        try:
            handle = self._engine.submit(prompt, _params(ask.sampling))
        except PacelineError as refused:
            return Answer(wall=time.perf_counter() - began, error=str(refused))
        try:
            async with asyncio.timeout(ask.timeout):
                async for event in handle.events():
                    if event.token_ids:
                        times.append(time.perf_counter() - began)
                        tokens.append(len(event.token_ids))
        except TimeoutError:
            error = f"no end after {ask.timeout:g} s"
        except PacelineError as failed:
            error = str(failed)
        finally:
            handle.cancel()
        wall = time.perf_counter() - began
        answer = Answer(
            wall=wall, event_times=tuple(times), event_tokens=tuple(tokens), error=error
        )
        return await self._with_result(answer, handle)

    async def _with_result(self, answer: Answer, handle: Handle) -> Answer:
        """The answer with the text and its counts. A text that was cut off has them, too."""
        try:
            done = await asyncio.to_thread(handle.result, 30.0)
        except (PacelineError, TimeoutError) as failed:
            return replace(answer, error=answer.error or str(failed))
        return replace(
            answer,
            text=done.text,
            prompt_tokens=done.prompt_tokens,
            new_tokens=len(done.token_ids),
            token_ids=done.token_ids,
            rounds=_rounds(done.stats),
            spent=_spent(done.stats),
            finish=done.finish,
        )

    def opening(self) -> Opening:
        engine = self._engine
        config = engine.config
        facts = {
            "threads": str(engine.threads),
            "device": config.device,
            **used(config.device),
            "dtype": config.dtype,
            "slots": str(config.slots),
            "prefix_cache": str(config.prefix_cache).lower(),
            "cache_tokens": str(engine.limits.positions),
            "weights and caches, MiB": f"{sum(engine.memory.values()) / 2**20:.0f}",
        }
        versions = {"paceline": __version__, "torch": version("torch")}
        return Opening(self._contestant, self._seconds, versions, facts)

    async def close(self) -> None:
        self._engine.close()


def _params(sampling: Sampling) -> SamplingParams:
    return sampling_params(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def _rounds(stats: SequenceStats) -> RoundCounts:
    sources = {
        name: SourceCounts(
            drafted, stats.evaluated_by_source.get(name, 0), stats.accepted_by_source.get(name, 0)
        )
        for name, drafted in stats.drafted_by_source.items()
    }
    return RoundCounts(
        rounds=stats.rounds,
        drafted=stats.drafted,
        evaluated=stats.evaluated,
        accepted=stats.accepted,
        evaluated_by_position=tuple(stats.evaluated_by_position),
        accepted_by_position=tuple(stats.accepted_by_position),
        sources=sources,
    )


def _spent(stats: SequenceStats) -> TimeSpent:
    host = max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds)
    return TimeSpent(
        stats.prefill_seconds,
        stats.draft_seconds,
        stats.verify_seconds,
        stats.wasted_seconds,
        host,
    )
