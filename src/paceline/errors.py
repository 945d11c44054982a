"""The errors a user can meet: one small tree, and each message says what to do next.

Programmer mistakes are assertions, not these. Imports nothing of the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PacelineError(Exception):
    """Base of every error that paceline raises on purpose. `exit_status` is the command's."""

    exit_status = 2


class ConfigError(PacelineError):
    """An option or configuration value that cannot be used."""


class CheckpointError(PacelineError):
    """A model folder that cannot be loaded: missing, truncated, unsupported or too large."""


class RequestError(PacelineError):
    """What is asked of an engine and cannot be served as it stands: a prompt that is too long or
    empty, a bad token id, a sampling parameter out of range."""


class NumericsError(PacelineError):
    """One request met logits that are not finite, or had every token masked."""

    exit_status = 1


class StepError(PacelineError):
    """The device, a drafter or the engine itself failed in a step that the request was in."""

    exit_status = 1


class EngineClosedError(PacelineError):
    """The engine was closed before or while the request ran."""

    exit_status = 1


def needs_extra(package: object, extra: str) -> str:
    """Return `needs the package P: …` with the command that installs an extra. The package is on no
    index, so the command is one for the clone."""
    return f"needs the package {package}: in paceline's clone, pip install -e '.[{extra}]'"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known name, or the list of names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
