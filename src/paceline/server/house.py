"""What the server has for requests where they do not say, made once of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline import SamplingParams
from paceline.server.sampling import defaults
from paceline.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class House:
    """sampling: what a request does not say of it; template: variables of the chat template, under
    a request's own; cuts: whether a text that is asked for longer than fits is cut there, instead
    of refused."""

    sampling: SamplingParams
    template: Mapping[str, object] = field(default_factory=dict)
    cuts: bool = False

    @classmethod
    def of(cls, settings: ServerSettings, target: str) -> House:
        """target: the served model. Raises ConfigError and CheckpointError, as `defaults` does."""
        sampling = defaults(settings.sampling, target)
        return cls(sampling, settings.chat_template_kwargs, settings.long_answers == "cut")
