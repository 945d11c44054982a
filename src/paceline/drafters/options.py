"""A drafter's options as text: `key=value,key=value` read into its dataclass.

Owns how a value's text becomes what the field's annotation says. Knows no drafter.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from paceline.errors import ConfigError, did_you_mean

_TRUTH = {"true": True, "yes": True, "on": True, "1": True}
_TRUTH |= {"false": False, "no": False, "off": False, "0": False}


def read_options(name: str, options: type[Any], text: str, defaults: Mapping[str, str]) -> Any:
    """Make `options`, a dataclass, from `text`, and from `defaults` those of its fields that
    `text` does not set. name: the drafter's, for messages. Raises ConfigError."""
    if not dataclasses.is_dataclass(options):
        raise ConfigError(f"drafter {name!r}: its Options must be a dataclass, not {options!r}")
    fields = dataclasses.fields(options)
    known = [f.name for f in fields]
    given = _parse(name, text, known)
    for key, value in defaults.items():
        if key in known:
            given.setdefault(key, value)
    hints = get_type_hints(options) if given else {}
    values = {key: _convert(name, key, value, hints[key]) for key, value in given.items()}
    for f in fields:
        without = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if without and f.name not in values:
            raise ConfigError(f"drafter {name!r} needs {f.name}: write {name}:{f.name}=…")
    return options(**values)


def _parse(name: str, text: str, known: Iterable[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"drafter {name!r}: write options as key=value, not {item!r}")
        if not known:
            raise ConfigError(f"drafter {name!r} has no options: leave {item!r} out")
        if key not in known:
            raise ConfigError(f"drafter {name!r} has no option {key!r}{did_you_mean(key, known)}")
        given[key] = value
    return given


def _convert(name: str, key: str, text: str, kind: Any) -> object:
    """`text` as `kind`, a field's annotation, wants it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and type(None) in parts:
        others = [part for part in parts if part is not type(None)]
        if text.lower() in ("none", ""):
            return None
        if len(others) == 1:
            return _convert(name, key, text, others[0])
    if origin is Literal and all(isinstance(part, str) for part in parts):
        if text not in parts:
            hint = did_you_mean(text, parts)
            raise ConfigError(f"drafter {name!r}: {key} cannot be {text!r}{hint}")
        return text
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ConfigError(f"drafter {name!r}: {key} must be true or false, not {text!r}")
        return _TRUTH[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise ConfigError(f"drafter {name!r}: {key} must be a {what}, not {text!r}") from None
    if kind in (str, Path):
        return kind(text)
    raise ConfigError(
        f"drafter {name!r}: {key} cannot be given as text, which is read as bool, int, float, str, "
        f"Path, one of several words, or None beside one of these: its type is {kind}; make the "
        "drafter in Python and pass it to Engine"
    )
