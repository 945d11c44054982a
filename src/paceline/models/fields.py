"""Typed reading of a JSON object in a file: each wrong value is one line that names the file.

Knows nothing of models. A key that is absent takes the default; a key that is null counts as
absent except where the method says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from paceline.errors import CheckpointError

_DAMAGED = "download the model again or correct the file"


class Fields:
    """The members of one JSON object. `where` is put before every message."""

    def __init__(self, where: str, members: dict[str, object]) -> None:
        self._where, self._members = where, members

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read `file`. Raises CheckpointError when it is absent or holds no JSON object."""
        try:
            members = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{file.parent} has no {file.name}; give a Hugging Face model folder"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); {_DAMAGED}") from None
        if not isinstance(members, dict):
            raise CheckpointError(f"{file} holds no JSON object; {_DAMAGED}")
        return cls(str(file), members)

    def error(self, problem: str, remedy: str = _DAMAGED) -> CheckpointError:
        """An error about this file, to be raised by the caller."""
        return CheckpointError(f"{self._where}: {problem}; {remedy}")

    def has(self, key: str) -> bool:
        """Whether `key` is there and neither null nor empty nor 0."""
        return bool(self._members.get(key))

    def plain(self, key: str) -> object:
        """The value as it stands, for whoever checks it; None where there is none."""
        return self._members.get(key)

    def inner(self, *keys: str) -> Fields:
        """The first of `keys` whose value is not empty, as an object of plain values."""
        for key in keys:
            value = self._members.get(key)
            if not value:
                continue
            if not isinstance(value, dict):
                raise self._wrong(key, "an object")
            if any(isinstance(member, dict) for member in value.values()):
                raise self.error(f"{key} differs by layer, not supported", "use another model")
            return Fields(f"{self._where}: {key}", value)
        return Fields(self._where, {})

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0. Without a default it must be there."""
        value = self._members.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self._wrong(key, "a number above 0")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A number above 0, or None."""
        return None if self._members.get(key) is None else self.number(key)

    def size(self, key: str) -> int:
        """An integer of at least 1 that must be there."""
        value = self.optional_size(key, None)
        if value is None:
            raise self.error(f"{key} is missing")
        return value

    def optional_size(self, key: str, absent: int | None) -> int | None:
        """An integer of at least 1; None where the value is null, `absent` without the key."""
        value = self._members.get(key, absent)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._wrong(key, "an integer of at least 1")
        return value

    def count(self, key: str, default: int) -> int:
        """An integer of at least 0."""
        value = self._members.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, "an integer of at least 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._members.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._members.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, or empty."""
        value = self._members.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings")
        return tuple(value)

    def first_text(self, key: str) -> str:
        """The first of a list of strings, or empty."""
        return next(iter(self.texts(key)), "")

    def members_of(self, key: str) -> dict[str, str]:
        """An object whose values are strings; it must be there."""
        value = self._members.get(key)
        if not isinstance(value, dict) or not value:
            raise self._wrong(key, "an object")
        if not all(isinstance(member, str) for member in value.values()):
            raise self.error(f"{key} holds something other than strings")
        return value

    def ids(self, key: str, absent: int | None) -> tuple[int, ...]:
        """Token ids, given as one or as a list; none where the value is null."""
        value = self._members.get(key, absent)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            raise self._wrong(key, "a token id or a list of them")
        return tuple(items)

    def optional_id(self, key: str, absent: int | None) -> int | None:
        """The first of `ids`, or None."""
        return next(iter(self.ids(key, absent)), None)

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        return self.error(f"{key} is {self._members.get(key)!r}, not {wanted}")
