"""What an operator sets about the server, checked once. Knows no HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from paceline import ConfigError
from paceline.server.tool_families import FAMILIES

KEYS_VARIABLE = "PACELINE_API_KEYS"
PARSERS = ("auto", "none", *FAMILIES)
LogForm: TypeAlias = Literal["json", "text"]
SamplingSource: TypeAlias = Literal["model", "openai"]
LongAnswers: TypeAlias = Literal["refuse", "cut"]
ReasoningField: TypeAlias = Literal["reasoning_content", "reasoning", "both"]
_Bound: TypeAlias = tuple[str, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to serve one engine. Raises ConfigError for a value that cannot be.

    name: the model's name, as clients send it; aliases: others for the same. api_keys: who may
    ask; empty lets everybody. cors: origins of web pages that may ask, or "*". max_body: bytes of
    a request. queue: texts that may wait for a slot; beyond that clients are told to come again.
    max_priority: the largest `priority` that a request may have, either way; 0 refuses every other.
    timeout: seconds from a request's arrival to the end of its text; 0 for as many as it takes.
    drain: seconds that running requests have after a SIGTERM. ping: seconds without a token after
    which a stream has a comment, so that nobody in between takes it for dead; 0 for never.
    metrics_prefix: what stands before the names in /metrics; "vllm" lets vLLM's dashboards work
    unchanged. tool_parser: the format of the model's tool calls, one of PARSERS; auto goes by its
    chat template. chat_template: a Jinja template in place of the checkpoint's; None leaves that;
    chat_template_kwargs: variables of it, under a request's own. reasoning: tell it from the
    answer, where the chat template marks it; reasoning_field: the name that it has in answers.
    sampling: what requests get that do not say: model, as its makers published it, or openai.
    long_answers: what becomes of a text that is asked for longer than fits: refuse or cut. page:
    whether `/` is the page. log_format: json or text, a line an event. record: a new file for the
    requests that were finished, None for none; record_limit: MiB that it may have.
    """

    name: str
    aliases: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors: tuple[str, ...] = ()
    max_body: int = 4 << 20
    queue: int = 256
    max_priority: int = 0
    timeout: float = 600.0
    drain: float = 60.0
    ping: float = 0.0
    metrics_prefix: str = "paceline"
    tool_parser: str = "auto"
    chat_template: str | None = field(default=None, repr=False)
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    reasoning: bool = True
    reasoning_field: ReasoningField = "reasoning_content"
    sampling: SamplingSource = "model"
    long_answers: LongAnswers = "refuse"
    page: bool = True
    log_format: LogForm = "json"
    record: Path | None = None
    record_limit: int = 256

    def __post_init__(self) -> None:
        if not all((self.name, *self.aliases)):
            raise ConfigError("the served model needs a name of at least one character")
        bounds: tuple[_Bound, ...] = (
            ("max_body", 1, 1 << 31),
            ("queue", 0, 1 << 20),
            ("max_priority", 0, 1 << 31),
            ("timeout", 0, 1e7),
            ("drain", 0, 1e7),
            ("ping", 0, 1e7),
            ("record_limit", 1, 1 << 20),
        )
        for name, low, high in bounds:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie from {low:g} to {high:g}")
        if self.record is not None and self.record.exists():
            raise ConfigError(f"record {self.record}: there is a file already; name a new one")
        if self.tool_parser not in PARSERS:
            raise ConfigError(
                f"tool_parser must be one of {', '.join(PARSERS)}, not {self.tool_parser!r}"
            )
        words: tuple[tuple[str, object], ...] = (
            ("log_format", LogForm),
            ("sampling", SamplingSource),
            ("long_answers", LongAnswers),
            ("reasoning_field", ReasoningField),
        )
        for name, known in words:
            value, choices = getattr(self, name), get_args(known)
            if value not in choices:
                told = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ConfigError(f"{name} must be {told}, not {value!r}")
        if not self.metrics_prefix.isidentifier():
            raise ConfigError(f"metrics_prefix must be a plain name, not {self.metrics_prefix!r}")

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """The names that reasoning has in answers."""
        both = ("reasoning_content", "reasoning")
        return both if self.reasoning_field == "both" else (self.reasoning_field,)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that clients may send for the model."""
        return self.name, *self.aliases


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """API keys from a file (one a line, # begins a comment) and from the environment (commas).

    Raises ConfigError, which shows no key, where the file cannot be read or holds none.
    """
    keys = [part.strip() for part in environment.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"{file}: cannot be read ({reason}); one key a line") from error
        found = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(found):
            raise ConfigError(f"{file}: no API key in it; write one a line")
        keys += found
    return tuple(dict.fromkeys(key for key in keys if key))
