"""Frozen dataclasses to JSON and back, checked field by field.

Knows no particular dataclass. What it takes: dataclasses, tuples of one type, dicts by text, unions
with None, literals and plain values.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")


class Malformed(ValueError):
    """A value that is not what its field takes; the message names the field."""


def plain(value: Any) -> Any:
    """What `json.dumps` takes: dataclasses as objects, without fields that have their default."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        # JSON has neither infinity nor "not a number", and nine digits are below what a clock has.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def build(cls: type[_T], value: Any, where: str = "") -> _T:
    """The dataclass that `value`, as read from JSON, stands for; unknown fields are left out.

    Raises Malformed.
    """
    if not isinstance(value, Mapping):
        raise Malformed(f"{where or 'the line'} must be an object, not {_short(value)}")
    hints = get_type_hints(cls)
    made: dict[str, Any] = {}
    for field in fields(cls):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            made[field.name] = _convert(hints[field.name], value[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise Malformed(f"{name} is missing")
    return cls(**made)


def _is_default(field: Any, value: Any) -> bool:
    if field.default is not MISSING:
        return bool(value == field.default and type(value) is type(field.default))
    return field.default_factory is not MISSING and bool(value == field.default_factory())


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not types.NoneType)
        return None if value is None else _convert(inner, value, name)
    if origin is Literal:
        if value not in get_args(hint):
            raise Malformed(f"{name} must be one of {', '.join(get_args(hint))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise Malformed(f"{name} must be a list, not {_short(value)}")
        return tuple(_convert(get_args(hint)[0], item, name) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise Malformed(f"{name} must be an object, not {_short(value)}")
        inner = get_args(hint)[1]
        return {str(k): _convert(inner, item, f"{name}.{k}") for k, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, name)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise Malformed(f"{name} must be {hint.__name__}, not {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
