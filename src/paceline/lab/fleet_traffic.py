"""Requests of a day: read from a file, or drawn from a Poisson process. Pure but for reading."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paceline import ConfigError
from paceline.files import read_text

_MOST = 20_000_000  # requests
_NEW = ("new_tokens", "output_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds from the beginning, tokens of its prompt and tokens to be written."""

    at: float
    prompt: int
    new: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, log-normal: the mean, and the standard deviation in means (0: all the same)."""

    mean: float
    spread: float = 0.0

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        """So many whole numbers of at least 1."""
        if not self.spread:
            return [max(1, round(self.mean))] * count
        variance = math.log1p(self.spread**2)
        drawn = random.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), count)
        return [max(1, round(float(x))) for x in drawn]

    @classmethod
    def parse(cls, text: str, option: str) -> Lengths:
        """`MEAN` or `MEAN:SPREAD`. Raises ConfigError."""
        mean, _, spread = text.partition(":")
        try:
            found = cls(float(mean), float(spread or 0))
        except ValueError:
            found = cls(0.0)
        if not 1 <= found.mean <= 1e7 or not 0 <= found.spread <= 10:
            raise ConfigError(
                f"{option} must be MEAN or MEAN:SPREAD, as in 256 or 256:0.5, not {text!r}"
            )
        return found


def poisson(
    rate: float, seconds: float, prompt: Lengths, new: Lengths, seed: int = 0
) -> list[Arrival]:
    """Requests at `rate` a second for so many seconds, independent of one another. Raises
    ConfigError where that is more than can be looked at."""
    if rate * seconds > _MOST:
        raise ConfigError(f"{rate * seconds:.3g} requests are too many: give fewer --hours")
    random = np.random.default_rng(seed)
    count = int(random.poisson(rate * seconds))
    times = np.sort(random.uniform(0.0, seconds, count))
    prompts, news = prompt.draw(random, count), new.draw(random, count)
    return [Arrival(float(t), p, n) for t, p, n in zip(times, prompts, news, strict=True)]


def read(file: Path) -> list[Arrival]:
    """Requests of a JSON lines file, in the order of their times: `at` in seconds, `prompt_tokens`
    and `new_tokens` (or output_tokens). Raises ConfigError, naming the line."""
    text = read_text(file)
    found = sorted(parse(text.split("\n"), str(file)), key=lambda arrival: arrival.at)
    if not found:
        raise ConfigError(f"{file}: no requests in it")
    return found


def parse(lines: Iterable[str], where: str) -> list[Arrival]:
    """One request a line. Raises ConfigError, naming the line."""
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            found.append(_arrival(value))
        except (ValueError, TypeError, KeyError) as error:
            reason = "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ConfigError(
                f'{where}, line {number}: {reason}; write {{"at": 1.5, "prompt_tokens": 300, '
                '"new_tokens": 120}, one request a line'
            ) from None
    return found


def _arrival(value: object) -> Arrival:
    if not isinstance(value, Mapping):
        raise TypeError("not an object")
    at, prompt = value.get("at"), value.get("prompt_tokens")
    new = next((value[name] for name in _NEW if name in value), None)
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < math.inf:
        raise ValueError("`at` must be seconds of at least 0")
    if type(prompt) is not int or prompt < 1:
        raise ValueError("`prompt_tokens` must be a whole number of at least 1")
    if type(new) is not int or new < 1:
        raise ValueError("`new_tokens` must be a whole number of at least 1")
    return Arrival(float(at), prompt, new)
