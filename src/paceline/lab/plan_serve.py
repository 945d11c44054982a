"""A plan as what `paceline serve --config` reads, and as what vLLM would be asked for."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping

from paceline import ConfigError, EngineConfig
from paceline.lab.plan_answer import Plan
from paceline.lab.plan_measured import Drafted, Measured
from paceline.lab.plan_vllm import Wanted
from paceline.lab.plan_words import verdict

# Of the options that the probe's engine had, those that a server is to have too.
_KEPT = ("rule", "dtype", "device", "max_length", "threads", "cache_tokens", "prefill_chunk")


def options(plan: Plan, measured: Measured) -> dict[str, object]:
    """The engine's options, by the names of `EngineConfig`. Raises ConfigError where the
    measurements do not say which models they are of."""
    if not measured.target:
        raise ConfigError("the measurements name no target model, so there is nothing to serve")
    found: dict[str, object] = {"target": measured.target, "drafter": plan.drafter or "none"}
    one = _drafted(plan, measured)
    if one is not None and one.draft is not None:
        found["draft"] = one.draft
    rule = measured.engine.get("rule", "match")
    fixed = rule != "match"
    found["k"] = fixed_k(plan) if fixed else plan.k
    found["adaptive"] = not fixed and plan.k > 0
    found["slots"] = max(point.load for point in plan.plain)
    for name in _KEPT:
        if name in measured.engine:
            text = measured.engine[name]
            found[name] = int(text) if text.isdecimal() else text
    return found


def fixed_k(plan: Plan) -> int:
    """The one K that is best over all loads (geometric mean of speed-ups): what rules are given
    that may not choose K round by round without changing a text."""
    gains: dict[int, float] = {0: 1.0}
    for one in plan.settings:
        if one.drafter == plan.drafter:
            gains[one.point.k] = gains.get(one.point.k, 1.0) * one.speed_up
    return max(gains, key=lambda k: (gains[k], -k))


def toml(plan: Plan, measured: Measured) -> str:
    """The file, with the verdict and where it comes from above it; checked to be read again.
    Raises ConfigError."""
    chosen = options(plan, measured)
    EngineConfig.make(**(chosen | {"device": "cpu"}))  # the device may be another machine's
    head = [*verdict(plan), f"From: {measured.source}"]
    lines = [f"# {line}" for line in head] + [f"{k} = {_value(v)}" for k, v in chosen.items()]
    text = "\n".join(line.replace("\n", " ") for line in lines) + "\n"
    assert tomllib.loads(text) == chosen
    return text


def wanted(plan: Plan, measured: Measured, sampling: tuple[str, ...], same_text: bool) -> Wanted:
    """What vLLM would be asked for."""
    one = _drafted(plan, measured)
    engine: Mapping[str, str] = measured.engine
    longest = engine.get("max_length", "")
    return Wanted(
        target=measured.target,
        drafter=plan.drafter,
        draft=one.draft if one is not None else None,
        loads=tuple(point.load for point in plan.plain),
        ks=plan.ks,
        rule=engine.get("rule", "match"),
        dtype=engine.get("dtype", "bfloat16"),
        slots=max(point.load for point in plan.plain),
        max_length=int(longest) if longest.isdecimal() else None,
        sampling=sampling,
        same_text=same_text,
    )


def _drafted(plan: Plan, measured: Measured) -> Drafted | None:
    return next((each for each in measured.drafters if each.drafter == plan.drafter), None)


def _value(value: object) -> str:
    # Basic strings of TOML are written as JSON's are.
    return json.dumps(value, ensure_ascii=True)
