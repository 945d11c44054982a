"""Contestants, loads and settings as a command line writes them: text to checked values.

`paceline:k=4`, `transformers:assisted`, `url:http://127.0.0.1:8000/v1,model=m`. Values that hold
commas stand in brackets of their own: `paceline:drafter=(ngram:max=6,min=2)`. Opens nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from paceline import ConfigError, EngineConfig
from paceline.errors import did_you_mean
from paceline.lab.bench_record import Contestant, Load

ENGINES = ("paceline", "transformers", "url")
_OPEN, _CLOSE = "([{", ")]}"
_TRANSFORMERS = ("target", "draft", "k", "dtype", "threads", "device")
_MODES = ("plain", "assisted", "lookup")
_URL = ("model", "key-env", "api", "drafter", "k")
_COMMON = ("label", "family")


def parse_contestants(specs: list[str], shared: Mapping[str, str]) -> list[Contestant]:
    """All contestants of a run. shared: settings for those that do not say otherwise (target,
    draft, dtype, device, threads, …). Raises ConfigError."""
    made = [parse_contestant(spec, shared) for spec in specs]
    names = [contestant.name for contestant in made]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"contestant {name!r} is there twice; give one of them a label=…")
    for family in dict.fromkeys(c.family for c in made):
        plains = [c.name for c in made if c.family == family and c.plain]
        if len(plains) > 1:
            raise ConfigError(
                f"{' and '.join(plains)} are both plain decoding of one engine; leave one out, or "
                "give one of them a family=…"
            )
    return made


def parse_contestant(spec: str, shared: Mapping[str, str]) -> Contestant:
    """One contestant. Raises ConfigError."""
    engine, _, rest = spec.partition(":")
    if engine not in ENGINES:
        raise ConfigError(
            f"contestant {spec!r} must begin with one of {', '.join(ENGINES)}"
            f"{did_you_mean(engine, ENGINES)}"
        )
    parts = _split(rest, spec)
    if engine == "url":
        return _endpoint(spec, parts)
    words = [part for part in parts if "=" not in part]
    options = _options(spec, [part for part in parts if "=" in part])
    return (_paceline if engine == "paceline" else _transformers)(spec, words, options, shared)


def parse_load(text: str) -> Load:
    """`closed:4`, `poisson:2.5`, `replay` or `replay:10`. Raises ConfigError."""
    kind, _, value = text.partition(":")
    try:
        number = float(value) if value else None
    except ValueError:
        number = math.nan
    if number is not None and not (math.isfinite(number) and number > 0):
        raise ConfigError(f"load {text!r}: the number must be above 0")
    if kind == "closed" and (number is None or number == int(number)):
        return Load("closed", concurrency=int(number or 1))
    if kind == "poisson" and number is not None:
        return Load("poisson", rate=number)
    if kind == "replay":
        return Load("replay", speed=number or 1.0)
    raise ConfigError(
        f"load {text!r} must be closed:N (N at a time), poisson:R (R requests a second) or "
        "replay:F (the times of a recorded log, F times as fast)"
    )


# --- one kind of contestant each -------------------------------------------------------------


def _paceline(
    spec: str, words: list[str], options: dict[str, str], shared: Mapping[str, str]
) -> Contestant:
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    _check(spec, words, ("plain", "adaptive"), options, (*fields, *_COMMON))
    chosen = _placed({k: v for k, v in shared.items() if k in fields} | options)
    plain = "plain" in words
    if plain:
        for name in ("draft", "drafter"):
            if name in options:
                raise ConfigError(f"contestant {spec!r}: plain decoding has no {name}")
        chosen |= {"drafter": "none", "k": "0"}
        chosen.pop("draft", None)
    drafter = chosen.get("drafter") or ("model" if "draft" in chosen else "none")
    if drafter == "none" and not plain:
        raise ConfigError(
            f"contestant {spec!r} drafts nothing: give --draft or drafter=…, or write "
            "paceline:plain"
        )
    adaptive = "adaptive" in words or chosen.get("adaptive") == "true"
    made = Contestant(
        name=options.get("label", spec),
        engine="paceline",
        family=options.get("family") or _family("paceline", chosen),
        plain=plain,
        model=chosen.get("target", ""),
        drafter=drafter,
        draft=chosen.get("draft"),
        k=_whole(spec, "k", chosen.get("k", "5")),
        rule=chosen.get("rule", "match"),
        adaptive=adaptive and not plain,
        options=_others(chosen, ("target", "drafter", "draft", "k", "rule", "adaptive")),
    )
    engine_config(made)  # refuses what an engine would, before anything is opened
    return made


def engine_config(contestant: Contestant) -> dict[str, Any]:
    """The options for `Engine`. Raises ConfigError."""
    values: dict[str, Any] = {name: _value(text) for name, text in contestant.options.items()}
    if "dtype" in contestant.options:
        values["dtype"] = contestant.options["dtype"]
    values.setdefault("device", "cpu")  # see `_placed`
    values |= {
        "target": contestant.model or None,
        "drafter": contestant.drafter,
        "draft": contestant.draft,
        "k": contestant.k,
        "rule": contestant.rule,
        "adaptive": contestant.adaptive,
    }
    try:
        EngineConfig.make(**values)
    except ConfigError as error:
        raise ConfigError(f"contestant {contestant.name!r}: {error}") from None
    return values


def _transformers(
    spec: str, words: list[str], options: dict[str, str], shared: Mapping[str, str]
) -> Contestant:
    _check(spec, words, _MODES, options, (*_TRANSFORMERS, *_COMMON))
    if len(words) > 1:
        raise ConfigError(f"contestant {spec!r}: choose one of {', '.join(_MODES)}")
    mode = words[0] if words else "plain"
    chosen = _placed({k: v for k, v in shared.items() if k in _TRANSFORMERS and k != "k"} | options)
    if mode == "assisted" and "draft" not in chosen:
        raise ConfigError(f"contestant {spec!r} needs a draft model: give --draft or draft=…")
    if mode == "plain" and "k" in options:
        raise ConfigError(f"contestant {spec!r}: plain decoding has no k")
    k = _whole(spec, "k", chosen["k"]) if "k" in chosen else None
    if mode == "lookup" and k is None:
        k = 10  # what transformers' documentation recommends; it has no default
    return Contestant(
        name=options.get("label", spec),
        engine="transformers",
        family=options.get("family") or _family("transformers", chosen),
        plain=mode == "plain",
        model=chosen.get("target", ""),
        drafter={"plain": "none", "assisted": "model", "lookup": "ngram"}[mode],
        draft=chosen.get("draft") if mode == "assisted" else None,
        k=0 if mode == "plain" else k,
        options={"mode": mode} | _others(chosen, ("target", "draft", "k")),
    )


def _endpoint(spec: str, parts: list[str]) -> Contestant:
    url = parts[0] if parts else ""
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ConfigError(f"contestant {spec!r}: write url:http://host:port/v1,model=…")
    if split.username or split.password:
        raise ConfigError(
            f"contestant {spec.split(',')[0].split('@')[-1]!r}: a key does not belong into the "
            "address; put it into an environment variable and give key-env=NAME"
        )
    words = [part for part in parts[1:] if "=" not in part]
    options = _options(spec, [part for part in parts[1:] if "=" in part])
    body = {k: v for k, v in options.items() if k.startswith("body.")}
    plain_options = {k: v for k, v in options.items() if k not in body}
    _check(spec, words, ("plain",), plain_options, (*_URL, *_COMMON, "body.NAME"))
    if options.get("api", "auto") not in ("auto", "chat", "completions"):
        raise ConfigError(f"contestant {spec!r}: api must be chat or completions")
    for name, text in body.items():
        try:
            json.loads(text)
        except ValueError:
            raise ConfigError(f"contestant {spec!r}: {name} must be JSON, not {text!r}") from None
    address = urlunsplit((split.scheme, split.netloc, split.path.rstrip("/"), "", ""))
    model = options.get("model", "")
    return Contestant(
        name=options.get("label", spec),
        engine="url",
        family=options.get("family") or f"{address} {model}".strip(),
        plain="plain" in words,
        model=model,
        drafter="none" if "plain" in words else options.get("drafter"),
        k=_whole(spec, "k", options["k"]) if "k" in options else None,
        options={"url": address} | _others(options, ("model", "drafter", "k")),
    )


# --- parts -----------------------------------------------------------------------------------


def _split(text: str, spec: str) -> list[str]:
    """Cut at commas outside of brackets and quotation marks."""
    parts, depth, quoted, part = list[str](), 0, False, ""
    for character in text:
        quoted ^= character == '"'
        if not quoted:
            depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0 and not quoted:
            parts.append(part)
            part = ""
        else:
            part += character
    if depth or quoted:
        raise ConfigError(f"contestant {spec!r}: a bracket or quotation mark is not closed")
    return [piece.strip() for piece in (*parts, part) if piece.strip()]


def _options(spec: str, parts: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name in options:
            raise ConfigError(f"contestant {spec!r}: {name} is there twice")
        bracketed = value.startswith("(") and value.endswith(")")
        options[name] = value[1:-1] if bracketed else value
    return options


def _check(
    spec: str,
    words: list[str],
    known_words: tuple[str, ...],
    options: Mapping[str, str],
    known: tuple[str, ...],
) -> None:
    for word in words:
        if word not in known_words:
            hint = did_you_mean(word, (*known_words, *(f"{name}=…" for name in known)))
            raise ConfigError(f"contestant {spec!r}: unknown {word!r}{hint}")
    for name in options:
        if name not in known:
            raise ConfigError(f"contestant {spec!r}: unknown setting {name!r}"
                              f"{did_you_mean(name, known)}")  # fmt: skip


def _family(engine: str, chosen: Mapping[str, str]) -> str:
    """Contestants whose plain decoding is the same: one engine, one target, one arithmetic."""
    parts = [chosen.get(name, "") for name in ("target", "dtype", "device", "threads")]
    return " ".join([engine, *filter(None, parts)])


def _placed(chosen: dict[str, str]) -> dict[str, str]:
    """The settings with the device that is meant where they name none: the same for every engine
    that computes here. Without one in a record it was the CPU."""
    if chosen.get("device", "auto") != "auto":
        return chosen
    device = EngineConfig(target="any").device
    rest = {name: value for name, value in chosen.items() if name != "device"}
    return rest if device == "cpu" else rest | {"device": device}


def _others(chosen: Mapping[str, str], without: tuple[str, ...]) -> dict[str, str]:
    return {k: v for k, v in chosen.items() if k not in (*without, *_COMMON)}


def _whole(spec: str, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"contestant {spec!r}: {name} must be a whole number, not {text!r}"
        ) from None


def _value(text: str) -> Any:
    """A setting's value as TOML would read it: true, a number, else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
