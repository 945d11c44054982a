"""`paceline generate`: one text from a prompt, a file or standard input."""

from __future__ import annotations

import dataclasses
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import ConfigError, Engine, Event, SamplingParams, SequenceStats, sampling_params
from paceline.cli import common
from paceline.cli.common import engine_options, open_engine, ratio, stderr, write_json

SAMPLING = "Sampling"


def _option(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=SAMPLING, **more)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - or nothing is standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read it from a file.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send it as a user's message, with the chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="System message of a --chat.")
    ] = None,
    prediction: Annotated[
        Path | None,
        typer.Option("--prediction", help="File with the text expected, for --drafter predicted."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show the text while it is written.")
    ] = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell what opening does: seconds and memory.")
    ] = False,
    json_: common.Json = False,
    target: common.Target = None,
    drafter: common.Drafter = None,
    draft: common.Draft = None,
    k: common.K = None,
    rule: common.Rule = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    threads: common.Threads = None,
    max_length: common.MaxLength = None,
    config: common.ConfigFile = None,
    temperature: Annotated[float | None, _option("--temperature", "0 is greedy.")] = None,
    top_k: Annotated[int | None, _option("--top-k", "0 is off.")] = None,
    top_p: Annotated[float | None, _option("--top-p", "1 is off.")] = None,
    min_p: Annotated[float | None, _option("--min-p", "0 is off.")] = None,
    repetition_penalty: Annotated[
        float | None, _option("--repetition-penalty", "Over prompt and text; 1 is off.")
    ] = None,
    presence_penalty: Annotated[
        float | None, _option("--presence-penalty", "Over the text; 0 is off.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, _option("--frequency-penalty", "Over the text; 0 is off.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        _option("--logit-bias", "ID=NUMBER, added to a token's logit; repeatable."),
    ] = None,
    seed: Annotated[
        int | None, _option("--seed", "The same seed gives the same text.", show_default="drawn")
    ] = None,
    max_tokens: Annotated[
        int | None, _option("--max-tokens", "Tokens to write at most.", show_default="256")
    ] = None,
    min_tokens: Annotated[int | None, _option("--min-tokens", "No end before that many.")] = None,
    stop: Annotated[
        list[str] | None, _option("--stop", "Text that ends it and is not shown; repeatable.")
    ] = None,
    stop_token_ids: Annotated[
        list[int] | None, _option("--stop-token-id", "Token id that ends it; repeatable.")
    ] = None,
    ignore_eos: Annotated[
        bool | None, _option("--ignore-eos", "Go on after the end of the sequence.")
    ] = None,
    logprobs: Annotated[
        int | None, _option("--logprobs", "Log-probabilities of this many top tokens, in --json.")
    ] = None,
    processed_logprobs: Annotated[
        bool | None,
        _option("--processed-logprobs", "Of what was drawn from, not the model's own."),
    ] = None,
) -> None:
    """Write one text with a target and a drafter.

    The text goes to standard output as it is written; --json gives one object with the text,
    its token ids, which drafter each came from, and the counts.
    """
    if seed is None and temperature:
        seed = secrets.randbits(31)  # drawn here, so that it can be told and used again
    params = make_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=parse_bias(logit_bias), seed=seed,
        max_tokens=max_tokens, min_tokens=min_tokens, stop=stop, stop_token_ids=stop_token_ids,
        ignore_eos=ignore_eos, logprobs=logprobs, processed_logprobs=processed_logprobs,
    )  # fmt: skip
    if system is not None and not chat:
        raise ConfigError("--system is part of a chat; add --chat")
    if logprobs is not None and not json_:
        raise ConfigError("--logprobs are shown in JSON only; add --json")
    options = engine_options(
        config, target=target, drafter=drafter, draft=draft, k=k, rule=rule, dtype=dtype,
        device=device, threads=threads, max_length=max_length, slots=1,
    )  # fmt: skip
    expected = None if prediction is None else common.read_text(None, prediction, "prediction")
    text = common.read_text(prompt, file, "prompt")
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    with common.telling(verbose), open_engine(options) as engine:
        run = _Run(engine, params, show=stream and not json_)
        run.write(messages if chat else text, expected)
        if json_:
            write_json(run.as_json())
        elif not stream:
            sys.stdout.write(run.text + "\n")


def parse_bias(given: list[str] | None) -> dict[str, float] | None:
    """Turn ID=NUMBER items into a mapping."""
    if not given:
        return None
    bias = {}
    for item in given:
        token, _, number = item.partition("=")
        try:
            bias[str(int(token))] = float(number)
        except ValueError:
            raise ConfigError(
                f"--logit-bias: write ID=NUMBER, for instance 42=-5, not {item!r}"
            ) from None
    return bias


def make_params(**given: Any) -> SamplingParams:
    """Check the sampling options that were given; the others keep their defaults."""
    return sampling_params(**{name: value for name, value in given.items() if value is not None})


class _Run:
    """Writes one text and keeps what became of it."""

    def __init__(self, engine: Engine, params: SamplingParams, show: bool) -> None:
        self.engine, self.params, self.show = engine, params, show
        self.events: list[Event] = []
        self.seconds = 0.0

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    def write(self, prompt: str | list[dict[str, str]], prediction: str | None) -> None:
        began = time.perf_counter()
        for event in self.engine.stream(prompt, self.params, prediction=prediction):
            self.events.append(event)
            if self.show:
                sys.stdout.write(event.text)
                sys.stdout.flush()
        self.seconds = time.perf_counter() - began
        if self.show:
            sys.stdout.write("\n")
            sys.stdout.flush()
            if stderr.is_terminal:
                stderr.print(f"[dim]{self.summary()}[/]")

    def summary(self) -> str:
        stats = self.engine.stats()
        rate = f"{stats.emitted / self.seconds:.0f} tok/s on {self.engine.config.device}"
        parts = [f"{stats.emitted} tokens, {rate}"]
        if stats.tokens_per_round is not None and stats.drafted:
            parts.append(f"{stats.tokens_per_round:.2f} tokens a round")
        if stats.acceptance_rate is not None:
            parts.append(f"acceptance {stats.acceptance_rate:.2f}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        last = self.events[-1]
        logprobs = [item for event in self.events for item in event.logprobs or ()]
        return {
            "text": self.text,
            "token_ids": [i for event in self.events for i in event.token_ids],
            "sources": [source for event in self.events for source in event.sources],
            "finish": last.finish,
            "stop_reason": last.stop_reason,
            "seed": self.params.seed,
            "device": self.engine.config.device,
            "logprobs": [dataclasses.asdict(item) for item in logprobs] or None,
            "seconds": ratio(self.seconds),
            **stats_json(self.engine.stats()),
        }


def stats_json(stats: SequenceStats) -> dict[str, Any]:
    """Return the counts of a run with their ratios."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "tokens": stats.emitted,
        "rounds": stats.rounds,
        "drafted": stats.drafted,
        "evaluated": stats.evaluated,
        "accepted": stats.accepted,
        "acceptance_rate": ratio(stats.acceptance_rate, 4),
        "draft_efficiency": ratio(stats.draft_efficiency, 4),
        "tokens_per_round": ratio(stats.tokens_per_round, 4),
    }
