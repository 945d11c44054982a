"""`paceline serve`: OpenAI's API over one engine, until a signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import ConfigError, EngineConfig, PacelineError
from paceline.cli import common
from paceline.cli.common import engine_options, open_engine
from paceline.errors import needs_extra

ENGINE, SERVER = "Engine", "Server"


class _Unfinished(PacelineError):
    """The server stopped with texts unfinished, or its engine has."""

    exit_status = 1


def _engine(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=ENGINE, **more)


def _option(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=SERVER, **more)


def serve(
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
    slots: Annotated[
        int | None,
        _engine("--slots", "Texts written at once.", show_default="4; on a GPU up to 16"),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        _engine("--cache-tokens", "Positions that the caches hold for all texts together.",
                show_default="every slot's longest; on a GPU what fits"),
    ] = None,
    memory: Annotated[
        float | None,
        _engine("--memory", "On a GPU, the caches' share of what is left free.",
                show_default="0.9"),
    ] = None,
    adaptive: Annotated[
        bool | None,
        _engine("--adaptive/--fixed", "Choose every round's draft tokens by what they cost and how "
                "many stand.", show_default="adaptive where it cannot change a text"),
    ] = None,
    latency: Annotated[
        float | None,
        _engine("--latency", "Most seconds a round should take, for that choice."),
    ] = None,
    prefix_cache: Annotated[
        bool | None,
        _engine("--prefix-cache/--no-prefix-cache", "Keep what was computed of a text for others "
                "that begin alike.", show_default="prefix-cache"),
    ] = None,
    prefill_chunk: Annotated[
        int | None,
        _engine("--prefill-chunk", "Prompt tokens read between two rounds.", show_default="512"),
    ] = None,
    max_gap: Annotated[
        float | None,
        _engine("--max-gap", "Most seconds that running texts should wait while others are read."),
    ] = None,
    seed: Annotated[
        int | None,
        _engine("--seed", "For requests that bring none.", show_default="drawn for each"),
    ] = None,
    host: Annotated[
        str | None, _option("--host", "Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        _option("--port", "Port; 0 takes a free one.", min=0, max=65535, show_default="8000"),
    ] = None,
    name: Annotated[
        list[str] | None,
        _option("--name", "The model's name for clients; repeatable.", show_default="the target's"),
    ] = None,
    api_keys: Annotated[
        Path | None,
        _option("--api-keys", "File with one API key a line; also PACELINE_API_KEYS, with commas."),
    ] = None,
    cors: Annotated[
        list[str] | None, _option("--cors", "Origin of web pages that may ask, or *; repeatable.")
    ] = None,
    queue: Annotated[
        int | None,
        _option("--queue", "Texts that may wait; beyond it 429.", show_default="256"),
    ] = None,
    max_priority: Annotated[
        int | None,
        _option("--max-priority", "Largest priority of a request, either way; 0 refuses others.",
                show_default="0"),
    ] = None,
    max_body: Annotated[
        int | None, _option("--max-body", "Bytes of a request.", show_default="4194304")
    ] = None,
    timeout: Annotated[
        float | None,
        _option("--timeout", "Seconds a request may take, its wait for a slot included; 0 for as "
                "many as it takes.", show_default="600"),
    ] = None,
    drain: Annotated[
        float | None,
        _option("--drain", "Seconds that running requests have after SIGTERM.", show_default="60"),
    ] = None,
    ping: Annotated[
        float | None,
        _option("--ping", "Seconds of silence after which a stream has a comment; 0 for none.",
                show_default="0"),
    ] = None,
    metrics_prefix: Annotated[
        str | None,
        _option("--metrics-prefix", "What begins names in /metrics; vllm fits its boards.",
                show_default="paceline"),
    ] = None,
    log_format: Annotated[
        str | None,
        _option("--log-format", "json or text, a line an event.", show_default="json"),
    ] = None,
    tool_parser: Annotated[
        str | None,
        _option("--tool-parser", "Format of the model's tool calls: auto (by its chat template), "
                "hermes, llama, mistral or none.", show_default="auto"),
    ] = None,
    chat_template: Annotated[
        Path | None,
        _option("--chat-template", "File with a Jinja template for chats.",
                show_default="the checkpoint's"),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        _option("--chat-template-kwargs", "JSON object of variables for the chat template, under a "
                "request's own.", show_default="none"),
    ] = None,
    reasoning: Annotated[
        bool | None,
        _option("--reasoning/--no-reasoning", "Tell reasoning from the answer, where the chat "
                "template marks it.", show_default="reasoning"),
    ] = None,
    reasoning_field: Annotated[
        str | None,
        _option("--reasoning-field", "Its name in answers: reasoning_content, reasoning or both.",
                show_default="reasoning_content"),
    ] = None,
    sampling: Annotated[
        str | None,
        _option("--sampling", "Of requests that do not say: model (its generation_config.json) or "
                "openai (temperature 1, nothing else).", show_default="model"),
    ] = None,
    long_answers: Annotated[
        str | None,
        _option("--long-answers", "Where max_tokens is more than fits: refuse, or cut the text "
                "there.", show_default="refuse"),
    ] = None,
    record: Annotated[
        Path | None,
        _option("--record", "New file for finished requests, prompts and all, to bench and plan "
                "with.", show_default="none"),
    ] = None,
    record_limit: Annotated[
        int | None, _option("--record-limit", "MiB that it may have.", show_default="256")
    ] = None,
    page: Annotated[
        bool | None, _option("--page/--no-page", "Serve the page at /.", show_default="page")
    ] = None,
) -> None:  # fmt: skip
    """Serve OpenAI's API: chat, completions, streaming, predicted outputs.

    Logs are JSON lines on standard error. SIGTERM refuses new requests, finishes those that run
    and ends with status 0. The file of --config may have a table named server with the options of
    that name below.
    """
    server = _server()
    given = {
        "target": target, "drafter": drafter, "draft": draft, "k": k, "rule": rule, "dtype": dtype,
        "device": device, "threads": threads, "max_length": max_length, "slots": slots,
        "adaptive": adaptive, "latency": latency, "cache_tokens": cache_tokens, "memory": memory,
        "prefix_cache": prefix_cache, "prefill_chunk": prefill_chunk, "max_gap": max_gap,
        "seed": seed,
    }  # fmt: skip
    options = engine_options(config, serving=True, **given)
    asked = EngineConfig.make(**options)
    options["device"] = asked.device  # settled, and told of, already
    said = {
        "host": host, "port": port, "name": name, "api_keys": api_keys, "cors": cors,
        "max_body": max_body, "queue": queue, "max_priority": max_priority, "timeout": timeout,
        "drain": drain, "ping": ping, "metrics_prefix": metrics_prefix, "log_format": log_format,
        "tool_parser": tool_parser, "chat_template": chat_template, "reasoning": reasoning,
        "sampling": sampling, "page": page, "record": record, "record_limit": record_limit,
        "chat_template_kwargs": chat_template_kwargs, "reasoning_field": reasoning_field,
        "long_answers": long_answers,
    }  # fmt: skip
    settings, at, door = server.settle(config, said, asked.target)
    server.defaults(settings.sampling, asked.target)  # a mistake is told before models open
    with (
        server.bind(at, door) as listening,
        server.log_to_stderr(settings.log_format, settings.api_keys),
    ):
        server.tell("opening", target=asked.target, drafter=asked.drafter, draft=asked.draft,
                    device=asked.device)  # fmt: skip
        # On a terminal, too, a line of JSON stays one: nothing else is drawn there.
        with open_engine(options, shown=settings.log_format == "text") as engine:
            finished = server.run(engine, settings, listening)
            ended = engine.ended
    if ended is not None:
        raise _Unfinished(str(ended))
    if not finished:
        raise _Unfinished("stopped with texts unfinished; give --drain more seconds")


def _server() -> Any:
    """The server's parts. Raises ConfigError where its packages are not installed."""
    try:
        from paceline.server import serving
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("paceline"):
            raise
        raise ConfigError(f"paceline serve {needs_extra(error.name, 'server')}") from error
    return serving
