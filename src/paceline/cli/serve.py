"""`paceline serve`: OpenAI's API over one engine, until a signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paceline import ConfigError, PacelineError
from paceline.cli import common
from paceline.cli.common import engine_options, open_engine
from paceline.config import load_toml

SERVER = "Server"


class _Unfinished(PacelineError):
    """The server stopped with texts unfinished, or its engine has."""

    exit_status = 1


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
        typer.Option("--slots", help="Texts written at once.", rich_help_panel="Models",
                     show_default="4; on a GPU up to 16"),
    ] = None,
    adaptive: Annotated[
        bool | None,
        typer.Option("--adaptive/--fixed", help="Choose every round's draft tokens by what they "
                     "cost and how many stand.", rich_help_panel="Models",
                     show_default="adaptive where it cannot change a text"),
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
    max_body: Annotated[
        int | None, _option("--max-body", "Bytes of a request.", show_default="4194304")
    ] = None,
    timeout: Annotated[
        float | None, _option("--timeout", "Seconds a request may take.", show_default="600")
    ] = None,
    drain: Annotated[
        float | None,
        _option("--drain", "Seconds that running requests have after SIGTERM.", show_default="60"),
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
    reasoning: Annotated[
        bool | None,
        _option("--reasoning/--no-reasoning", "Tell reasoning from the answer, where the chat "
                "template marks it.", show_default="reasoning"),
    ] = None,
    page: Annotated[
        bool | None, _option("--page/--no-page", "Serve the page at /.", show_default="page")
    ] = None,
) -> None:  # fmt: skip
    """Serve OpenAI's API: chat, completions, streaming, predicted outputs.

    Logs are JSON lines on standard error. SIGTERM refuses new requests, finishes those that run
    and ends with status 0. The file of --config may have a table [server] with the options of that
    name below.
    """
    server = _server()
    given = {
        "target": target, "drafter": drafter, "draft": draft, "k": k, "rule": rule, "dtype": dtype,
        "device": device, "threads": threads, "max_length": max_length, "slots": slots,
        "adaptive": adaptive,
    }  # fmt: skip
    options = engine_options(config, **given)
    if config is None:
        options["adaptive"] = adaptive
        if drafter is None:
            # The text that a request predicts costs nothing where none does.
            options["drafter"] = "predicted+model" if "draft" in options else "predicted+ngram"
    else:
        chosen = {key: value for key, value in given.items() if value is not None}
        chosen["device"] = options["device"]  # settled, and told of, already
        options["adaptive"] = load_toml(config, **chosen).adaptive
    said = {
        "host": host, "port": port, "name": name, "api_keys": api_keys, "cors": cors,
        "max_body": max_body, "queue": queue, "timeout": timeout, "drain": drain,
        "metrics_prefix": metrics_prefix, "log_format": log_format,
        "tool_parser": tool_parser, "reasoning": reasoning, "page": page,
    }  # fmt: skip
    settings, at, door = server.settle(config, said, Path(str(options["target"])).name)
    listening = server.bind(at, door)
    with listening, open_engine(options) as engine:
        server.log_to_stderr(settings.log_format, settings.api_keys)
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
        raise ConfigError(
            f"paceline serve needs the package {error.name}: pip install 'paceline[server]'"
        ) from error
    return serving
