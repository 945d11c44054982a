"""Random JSON schemas whose values are bounded: none of them can go on for ever."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("id", "name", "kind", "size", "tags", "count", "owner", "price", "notes", "état", "a b")
_WORDS = ("red", "green", "it's", 'say "hi"', "ünï", "", "a/b", "\\n", "0", "null")
_PATTERNS = ("^[a-z]{1,6}$", "^[A-Z]{2}-[0-9]{1,4}$", "^(yes|no|maybe)$", "^#[0-9a-f]{6}$")
_FORMATS = ("date", "time", "uuid", "ipv4")
# What many servers cannot bind: it is to be refused, not ignored.
_RARE: tuple[Schema, ...] = (
    {"not": {"type": "null"}},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3, "uniqueItems": True},
    {"type": "array", "items": {"type": "null"}, "maxItems": 3, "contains": {"type": "null"}},
    {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1},
    {"type": "object", "propertyNames": {"maxLength": 3}, "maxProperties": 2},
    {"if": {"type": "string"}, "then": {"maxLength": 3}, "else": {"type": "null"}},
)


def random_schema(number: int) -> Schema:
    """The schema of this number; always the same one."""
    rng = random.Random(number)
    schema = _object(rng, depth=2) if rng.random() < 0.8 else _any(rng, depth=2)
    if rng.random() < 0.08:
        schema = {"type": "object", "properties": {"it": schema, "odd": rng.choice(_RARE)},
                  "required": ["odd"], "additionalProperties": False}  # fmt: skip
    if rng.random() < 0.1:
        schema = {"$defs": {"inner": schema}, "$ref": "#/$defs/inner"}
    return schema


def _any(rng: random.Random, depth: int) -> Schema:
    plain = (_string, _integer, _number, _choice, _flag)
    nested = (_object, _array, _either)
    if depth > 0 and rng.random() < 0.45:
        return rng.choice(nested)(rng, depth - 1)
    return rng.choice(plain)(rng)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "additionalProperties": False,
    }
    required = [name for name in names if rng.random() < 0.7]
    if required:
        schema["required"] = required
    if rng.random() < 0.2:
        schema["description"] = "what it is"
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    schema: Schema = {"type": "array", "items": _any(rng, depth), "minItems": least}
    schema["maxItems"] = least + rng.randint(0, 2)
    if rng.random() < 0.15:
        schema["prefixItems"] = [_flag(rng)]
    return schema


def _either(rng: random.Random, depth: int) -> Schema:
    return {rng.choice(("anyOf", "anyOf", "oneOf")): [_flag(rng), _object(rng, depth)]}


def _string(rng: random.Random) -> Schema:
    form = rng.random()
    if form < 0.2:
        return {"type": "string", "pattern": rng.choice(_PATTERNS)}
    if form < 0.35:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 10)}


def _integer(rng: random.Random) -> Schema:
    least = rng.randint(-300, 300)
    schema: Schema = {"type": "integer", "minimum": least, "maximum": least + rng.randint(5, 900)}
    if rng.random() < 0.2:
        schema["multipleOf"] = 5
    return schema


def _number(rng: random.Random) -> Schema:
    """Multiples of powers of two: of others a validator that divides is not sure."""
    low = rng.randint(-9, 9)
    if rng.random() < 0.3:
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + 2, "multipleOf": 0.25}
    return {
        "type": "number",
        "minimum": low,
        "maximum": low + rng.randint(1, 90),
        "multipleOf": 0.125,
    }


def _choice(rng: random.Random) -> Schema:
    if rng.random() < 0.3:
        return {"const": rng.choice((1, True, None, "only", [1, 2], {"a": "b"}))}
    return {"enum": rng.sample([*_WORDS, 7, None, False, 2.5], rng.randint(1, 5))}


def _flag(rng: random.Random) -> Schema:
    return {"type": rng.choice(("boolean", "null", ["boolean", "null"]))}
