"""What a user may set: the engine's options and one request's sampling parameters.

Every value is checked here, once, with a message that names the option, what it may be and what
it was. An engine's option that cannot be is a ConfigError, a request's a RequestError. Knows no
model: what depends on one (a token id beyond the vocabulary) is the engine's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

import torch

from paceline.checks import Checks, is_whole, shown
from paceline.errors import ConfigError, RequestError
from paceline.files import read_text
from paceline.models.devices import AUTO, choose
from paceline.models.opening import parse_dtype
from paceline.speculation.verify import RULES
from paceline.types import RuleName, SamplingParams

MAX_K = 64
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1
# Below this the logits divided by it leave float32's range; greedy is meant.
MIN_TEMPERATURE = 1e-3
MIN_PENALTY = 1e-30  # logits are divided by it, and by the temperature: they stay in float32

_OPTION, _ASKED = Checks(ConfigError), Checks(RequestError)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to open an engine. Raises ConfigError for a value that cannot be.

    target: a checkpoint folder, a bundled model's name or a hub id. drafter: a drafter's name,
    several joined with `+`; `make` takes "model" where `draft` alone is given. draft: the draft
    model, for drafters that have one. k: draft tokens a round, 0 is plain decoding. rule: match,
    reject or block. dtype: bfloat16, float32, float64. device: cpu, cuda or cuda:1, or
    auto: cuda where torch sees a GPU that can do it, else cpu; here it is settled, so the field
    then says which. slots: texts written at once; None is 4 on a CPU and on a GPU 16, or fewer
    where these would leave the longest text much less memory. max_length:
    positions a text may have, prompt included; None is the model's own, on a CPU at most 4096, and
    no more than the cache can hold of one text. threads: of the CPU; None measures at start.
    prefill_chunk: prompt tokens a pass. seed: for requests that bring none; None draws one. On a
    GPU: capture records the rounds as CUDA graphs at start (False: run them eagerly, for
    debugging), and memory is the cache's share of what weights, slots and work space leave free,
    where cache_tokens is None.

    adaptive: choose every round's draft tokens, 0 to k, from what rounds cost and how many drafts
    stand (False: always k; None: where that cannot change a text, under the rule match).
    latency: the most seconds a round should take, for that choice. cache_tokens: positions that
    the caches hold for all texts together, in whole pages of 64 and at least one text; None is
    enough for every slot's longest, on a GPU at most what fits in `memory`. prefix_cache:
    keep what was computed of a text for later ones that begin alike. max_gap: the longest, in
    seconds, that running texts should wait while prompts, scored texts or what a drafter has not
    seen are read; None reads prefill_chunk tokens of prompts between two rounds.
    """

    target: str
    drafter: str = "none"
    draft: str | None = None
    k: int = 5
    rule: RuleName = "match"
    dtype: str = "bfloat16"
    device: str = AUTO
    slots: int | None = None
    max_length: int | None = None
    threads: int | None = None
    prefill_chunk: int = 512
    seed: int | None = None
    capture: bool = True
    memory: float = 0.9
    adaptive: bool | None = None
    latency: float | None = None
    cache_tokens: int | None = None
    prefix_cache: bool = True
    max_gap: float | None = None

    def __post_init__(self) -> None:
        _OPTION.text("target", self.target)
        _OPTION.text("drafter", self.drafter)
        _device(self.device)
        if self.draft is not None:
            _OPTION.text("draft", self.draft)
        _OPTION.whole("k", self.k, 0, MAX_K)
        _OPTION.choice("rule", self.rule, get_args(RuleName))
        _OPTION.text("dtype", self.dtype)
        parse_dtype(self.dtype)
        if self.device == AUTO:
            object.__setattr__(self, "device", choose(self.dtype))  # frozen for everybody else
        if self.slots is not None:
            _OPTION.whole("slots", self.slots, 1, 4096)
        _OPTION.whole("prefill_chunk", self.prefill_chunk, 1, 1 << 16)
        if self.max_length is not None:
            _OPTION.whole("max_length", self.max_length, 2, 1 << 24)
        if self.threads is not None:
            _OPTION.whole("threads", self.threads, 1, 1024)
        if self.seed is not None:
            _OPTION.whole("seed", self.seed, 0, MAX_SEED)
        for name in ("capture", "adaptive", "prefix_cache"):
            if name != "adaptive" or self.adaptive is not None:
                _OPTION.flag(name, getattr(self, name))
        for name in ("latency", "max_gap"):
            value = getattr(self, name)
            if value is not None and _OPTION.number(name, value, 0.0, note="seconds") == 0:
                raise ConfigError(f"{name} must be above 0 seconds, not {value!r}")
        if self.cache_tokens is not None:
            _OPTION.whole("cache_tokens", self.cache_tokens, 1, 1 << 40)
        if _OPTION.number("memory", self.memory, 0.0, 1.0) == 0:
            raise ConfigError("memory must be above 0 and at most 1, not 0")

    @property
    def adapts(self) -> bool:
        """Whether every round's draft tokens are chosen, 0 to k; else it is always k."""
        return RULES[self.rule].keeps_text if self.adaptive is None else self.adaptive

    @classmethod
    def make(cls, **options: Any) -> Self:
        """Build from keywords; an unknown one is a ConfigError that names the nearest."""
        _OPTION.known(options, [field.name for field in fields(cls)], "option")
        if options.get("target") is None:
            raise ConfigError("no target; give a checkpoint folder, for instance mini-target")
        if options.get("drafter") is None:
            options["drafter"] = "none" if options.get("draft") is None else "model"
        return cls(**options)


def load_toml(path: str | Path, **overrides: Any) -> EngineConfig:
    """Read an engine's options from a TOML file, one key each; `overrides` win over the file.

    A table [server] is left to `paceline serve`. Raises ConfigError, which names the file.
    """
    options = read_toml(path)
    try:
        return EngineConfig.make(**(options | overrides))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The engine's options as the file has them, unchecked. Raises ConfigError for a file that
    cannot be read."""
    text = read_text(path, "give a TOML file")
    try:
        options = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if isinstance(options.get("server"), dict):
        del options["server"]
    return options


def sampling_params(**options: Any) -> SamplingParams:
    """Build checked `SamplingParams` from keywords as users and JSON write them.

    `stop` may be one string or several, `logit_bias` a mapping or pairs, `stop_token_ids` any
    iterable. Raises RequestError, one line, for an unknown name or a value out of range.
    """
    _ASKED.known(options, [field.name for field in fields(SamplingParams)], "sampling parameter")
    values = dict(options)
    if "stop" in values:
        values["stop"] = _strings("stop", values["stop"])
    if "stop_token_ids" in values:
        values["stop_token_ids"] = _ASKED.listed("stop_token_ids", values["stop_token_ids"])
    if "logit_bias" in values:
        values["logit_bias"] = _pairs("logit_bias", values["logit_bias"])
    params = SamplingParams(**values)
    check_sampling(params)
    return params


def check_sampling(params: SamplingParams) -> None:
    """Raise RequestError for the first value of `params` that cannot be."""
    temperature = _ASKED.number("temperature", params.temperature, 0.0)
    if 0 < temperature < MIN_TEMPERATURE:
        raise RequestError(
            f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE}, not {temperature}"
        )
    _ASKED.whole("top_k", params.top_k, 0, note="0 is off")
    if _ASKED.number("top_p", params.top_p, 0.0, 1.0, "1 is off") == 0:
        raise RequestError("top_p must be above 0 and at most 1 (1 is off), not 0")
    _ASKED.number("min_p", params.min_p, 0.0, 1.0, "0 is off")
    _ASKED.number("repetition_penalty", params.repetition_penalty, MIN_PENALTY, note="1 is off")
    _ASKED.number("presence_penalty", params.presence_penalty)
    _ASKED.number("frequency_penalty", params.frequency_penalty)
    _check_bias(params.logit_bias)
    if params.seed is not None:
        _ASKED.whole("seed", params.seed, 0, MAX_SEED)
    _ASKED.whole("max_tokens", params.max_tokens, 1)
    _ASKED.whole("min_tokens", params.min_tokens, 0)
    if params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens ({shown(params.min_tokens)}) must not exceed max_tokens "
            f"({shown(params.max_tokens)})"
        )
    for stop in params.stop:
        if not isinstance(stop, str) or not stop:
            raise RequestError(f"stop must hold texts of at least one character, not {shown(stop)}")
    for token in params.stop_token_ids:
        _ASKED.whole("stop_token_ids: a token id", token, 0)
    for name in ("stop_after", "stop_opened_by"):
        if not isinstance(getattr(params, name), str):
            raise RequestError(f"{name} must be a text, not {shown(getattr(params, name))}")
    if params.stop_opened_by and not params.stop_after:
        raise RequestError("stop_opened_by needs stop_after: the mark that ends what it opens")
    for name in (
        "ignore_eos",
        "skip_special_tokens",
        "processed_logprobs",
        "include_stop_str_in_output",
    ):
        _ASKED.flag(name, getattr(params, name))
    if params.logprobs is not None:
        _ASKED.whole("logprobs", params.logprobs, 0, MAX_LOGPROBS)


def _check_bias(pairs: Iterable[object]) -> None:
    named = set()
    for item in pairs:
        token, bias = _ASKED.pair("logit_bias", item)
        _ASKED.whole("logit_bias: a token id", token, 0)
        _ASKED.number(f"logit_bias of token {shown(token)}", bias)
        if token in named:
            raise RequestError(f"logit_bias has token {shown(token)} twice; give it one number")
        named.add(token)


def check_k(k: object, most: int) -> None:
    """Raise RequestError for draft tokens a round that cannot be. most: the engine's k."""
    if not is_whole(k) or not 0 <= k <= most:
        raise RequestError(
            f"k must be a whole number from 0 to the engine's {most}, not {shown(k)}; "
            "open the engine with the largest k you need"
        )


def check_request(k: object, most: int, priority: object, deadline: object) -> None:
    """Raise RequestError for what a request may not ask. most: the engine's k."""
    if k is not None:
        check_k(k, most)
    _ASKED.whole("priority", priority, -(1 << 31), 1 << 31)
    if deadline is not None and _ASKED.number("deadline", deadline, 0.0, note="seconds") == 0:
        raise RequestError("deadline must be above 0 seconds, not 0")


def _strings(name: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else _ASKED.listed(name, value)


def _pairs(name: str, value: object) -> tuple[tuple[Any, Any], ...]:
    """Return (id, bias) pairs; JSON writes the ids as texts."""
    items = value.items() if isinstance(value, Mapping) else _ASKED.listed(name, value or ())
    return tuple((_token(token), bias) for token, bias in (_ASKED.pair(name, i) for i in items))


def _token(value: object) -> object:
    # A longer text is no token id, and of some lengths no number to Python.
    if isinstance(value, str) and value.isdecimal() and len(value) <= 18:
        return int(value)
    return value


def _device(value: object) -> None:
    _OPTION.text("device", value)
    if value == AUTO:
        return
    try:
        kind = torch.device(str(value)).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(
            f"device must be auto, cpu or cuda (cuda:1 for the second), not {value!r}"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {value!r}: torch sees no CUDA device here; use cpu")
    if kind == "cuda" and (torch.device(str(value)).index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {value!r}: torch sees {count}, cuda:0 to cuda:{count - 1}")
