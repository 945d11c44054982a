"""Checks of one value, as a user gave it: what may be, and what it was, in one line.

Whoever checks says which error a fault is: an option's a ConfigError, a request's a RequestError.
Knows none of the options and parameters themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from paceline.errors import PacelineError, did_you_mean

# A number that is added to logits, divides them or counts seconds stays far inside float32.
LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks whose faults are `error`s. `name` is what the message calls the value by."""

    error: type[PacelineError]

    def known(self, given: Iterable[str], names: list[str], what: str) -> None:
        """Every name given is one of `names`; the message has the nearest. what: they are."""
        for name in given:
            if name not in names:
                raise self.error(f"unknown {what} {name!r}{did_you_mean(name, names)}")

    def text(self, name: str, value: object) -> str:
        """A text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.error(f"{name} must be a text of at least one character, not {shown(value)}")
        return value

    def flag(self, name: str, value: object) -> None:
        """True or false, and nothing that only counts as one."""
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, not {shown(value)}")

    def choice(self, name: str, value: object, choices: tuple[str, ...]) -> None:
        """One of `choices`."""
        if value not in choices:
            hint = did_you_mean(value, choices) if isinstance(value, str) else ""
            hint = hint if "did you mean" in hint else ""  # the choices are named already
            raise self.error(f"{name} must be one of {', '.join(choices)}, not {value!r}{hint}")

    def whole(
        self, name: str, value: object, low: int, high: int | None = None, note: str = ""
    ) -> int:
        """A whole number from `low` to `high`; note: what one of them means."""
        if not is_whole(value) or value < low or (high is not None and value > high):
            raise self.error(
                f"{name} must be a whole number{_range(low, high, note)}, not {shown(value)}"
            )
        return value

    def number(
        self,
        name: str,
        value: object,
        low: float | None = None,
        high: float | None = None,
        note: str = "",
    ) -> float:
        """A finite number from `low` to `high`, and at most `LARGEST` either way."""
        try:
            number = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:  # a whole number beyond all floats
            number = math.inf
        outside = (low is not None and number < low) or (high is not None and number > high)
        if isinstance(value, bool) or not math.isfinite(number) or outside:
            raise self.error(
                f"{name} must be a number{_range(low, high, note)}, not {shown(value)}"
            )
        if abs(number) > LARGEST:
            raise self.error(f"{name} must lie within ±{LARGEST:g}, not {number:g}")
        return number

    def listed(self, name: str, value: object) -> tuple[Any, ...]:
        """What a list, a tuple or another iterable holds, in order; a text is none."""
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise self.error(f"{name} must be a list, not {shown(value)}")
        return tuple(value)

    def pair(self, name: str, item: object) -> tuple[Any, Any]:
        """A token id and a number, neither of them checked."""
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise self.error(f"{name} must map token ids to numbers, not hold {shown(item)}")
        return item[0], item[1]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number: a bool is one to Python and a mistake to everyone else."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """`value` for a message: one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no number of over some thousand digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _range(low: float | None, high: float | None, note: str) -> str:
    words = ""
    if low is not None and high is not None:
        words = f" from {low:g} to {high:g}"
    elif low is not None:
        words = f" of at least {low:g}"
    return words + (f" ({note})" if note else "")
