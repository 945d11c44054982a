"""Drafters by name: the built-in ones and those that third parties register.

A drafter is named by `name` or `name:key=value,key=value`; names joined with `+` make a `mix`
that takes, row by row, the first that has a draft. Each drafter's options are a frozen dataclass
in its own file; third parties register a `Drafter` subclass with an `Options` attribute under
the entry-point group `paceline.drafters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import get_type_hints

from paceline.drafters.base import Drafter, Draw, TargetInfo
from paceline.errors import ConfigError, did_you_mean

__all__ = ["Drafter", "Draw", "TargetInfo", "create", "create_for", "names"]

_BUILT_IN = {
    "none": "paceline.drafters.none:NoDrafter",
    "model": "paceline.drafters.model:ModelDrafter",
    "ngram": "paceline.drafters.ngram:NgramDrafter",
    "predicted": "paceline.drafters.predicted:PredictedDrafter",
    "replay": "paceline.drafters.replay:ReplayDrafter",
}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(sorted({*_BUILT_IN, *(e.name for e in entry_points(group="paceline.drafters"))}))


def create(spec: str, **defaults: str) -> Drafter:
    """Make the drafter that `spec` names (see the module's text).

    defaults: option values used where the drafter has that option and `spec` does not set it
    (the command's `--draft` gives `path` this way). Raises ConfigError.
    """
    parts = [part.strip() for part in spec.split("+")]
    made = [_create_one(part, defaults) for part in parts]
    if len(made) == 1:
        return made[0]
    from paceline.drafters.mix import MixDrafter

    return MixDrafter(tuple(made))


def create_for(spec: str, draft: str | None, dtype: str) -> Drafter:
    """`create` with what an engine's options say of the draft model, where they name one."""
    return create(spec) if draft is None else create(spec, path=draft, dtype=dtype)


def _create_one(part: str, defaults: dict[str, str]) -> Drafter:
    name, _, text = part.partition(":")
    cls = _load(name)
    options = cls.Options  # type: ignore[attr-defined]
    given = _parse(name, text, [f.name for f in dataclasses.fields(options)])
    for key, value in defaults.items():
        if key in {f.name for f in dataclasses.fields(options)}:
            given.setdefault(key, value)
    hints = get_type_hints(options)
    values = {key: _convert(name, key, value, hints[key]) for key, value in given.items()}
    missing = [
        f.name
        for f in dataclasses.fields(options)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"drafter {name!r} needs {missing[0]}: write {name}:{missing[0]}=…")
    made = cls(options(**values))  # type: ignore[call-arg]
    return made


def _load(name: str) -> type[Drafter]:
    target = _BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        cls: type[Drafter] = getattr(import_module(module), attribute)
        return cls
    for entry in entry_points(group="paceline.drafters"):
        if entry.name == name:
            loaded: type[Drafter] = entry.load()
            return loaded
    raise ConfigError(f"unknown drafter {name!r}{did_you_mean(name, names())}")


def _parse(name: str, text: str, known: Iterable[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"drafter {name!r}: write options as key=value, not {item!r}")
        if key not in known:
            raise ConfigError(f"drafter {name!r} has no option {key!r}{did_you_mean(key, known)}")
        given[key] = value
    return given


def _convert(name: str, key: str, value: str, kind: object) -> object:
    try:
        if kind is int:
            return int(value)
        if kind is float:
            return float(value)
    except ValueError:
        raise ConfigError(f"drafter {name!r}: {key} must be a number, not {value!r}") from None
    return value
