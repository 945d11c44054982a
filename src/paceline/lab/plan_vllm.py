"""The equivalent `vllm serve` line of a plan, where vLLM can do it, by the table of one version.

The table (`vllm_options.json`) was read from that version's published package by
`benchmarks/vllm_options.py`. A line that the table does not bear out is not written.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_DTYPES = {"bfloat16": "bfloat16", "float32": "float32"}
# Sampling that vLLM refuses in a request while it speculates (its SamplingParams say so).
_REFUSED = ("min_p", "logit_bias")


@dataclass(frozen=True, slots=True)
class Command:
    """line: None where it is refused; why says the reason. notes: what vLLM does otherwise."""

    line: str | None
    why: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served: the target, one drafter and its model, rule, the K at each load
    (texts at a time), and what the engine and its requests were given. same_text: the text at a
    seed is to be the same with speculation and without."""

    target: str
    drafter: str | None
    draft: str | None
    loads: tuple[int, ...]
    ks: tuple[int, ...]
    rule: str = "match"
    dtype: str = "bfloat16"
    slots: int | None = None
    max_length: int | None = None
    sampling: tuple[str, ...] = ()
    same_text: bool = False


@cache
def table() -> Mapping[str, Any]:
    """The committed table."""
    text = (files("paceline") / "lab" / "vllm_options.json").read_text(encoding="utf-8")
    value: Mapping[str, Any] = json.loads(text)
    return value


def command(wanted: Wanted) -> Command:
    """The line, or why there is none."""
    version = table()["version"]
    reason = _refusal(wanted)
    if reason is not None:
        return Command(None, f"vLLM {version} {reason}")
    words = ["vllm", "serve", wanted.target, "--dtype", _DTYPES[wanted.dtype]]
    if wanted.max_length is not None:
        words += ["--max-model-len", str(wanted.max_length)]
    if wanted.slots is not None:
        words += ["--max-num-seqs", str(wanted.slots)]
    notes: list[str] = []
    most = max(wanted.ks, default=0)
    if wanted.drafter is not None and most:
        config = _speculative(wanted, most)
        words += ["--speculative-config", json.dumps(config)]
        notes = _notes(wanted)
    line = shlex.join(words)
    problems = check(line)
    assert not problems, problems
    return Command(line, None, tuple(notes))


def check(line: str) -> list[str]:
    """What of a `vllm serve` line the table does not know or allow."""
    words = shlex.split(line)
    if words[:2] != ["vllm", "serve"] or len(words) < 3 or words[2].startswith("-"):
        return ["not vllm serve MODEL …"]
    problems, rest = [], iter(words[3:])
    for word in rest:
        if word not in table()["options"]:
            problems.append(f"unknown option {word}")
        value = next(rest, None)
        if value is None or value.startswith("--"):
            problems.append(f"{word} has no value")
        elif word == "--speculative-config":
            problems += _check_config(value)
        elif word == "--dtype" and value not in table()["names"]["ModelDType"]:
            problems.append(f"--dtype {value}")
        elif word in ("--max-model-len", "--max-num-seqs") and not value.isdecimal():
            problems.append(f"{word} {value}")
    return problems


def _check_config(text: str) -> list[str]:
    try:
        config = json.loads(text)
    except ValueError:
        return ["--speculative-config is not JSON"]
    if not isinstance(config, dict):
        return ["--speculative-config is not an object"]
    fields, names, problems = table()["speculative_config"], table()["names"], []
    for key, value in config.items():
        if key not in fields:
            problems.append(f"speculative_config has no field {key}")
        elif not _fits(fields[key], value, names):
            problems.append(f"speculative_config.{key} is no {fields[key]['type']}: {value!r}")
    return problems


def _fits(field: Mapping[str, Any], value: object, names: Mapping[str, Sequence[str]]) -> bool:
    kinds = [part.strip() for part in field["type"].split("|")]
    for kind in kinds:
        if kind in names and value in names[kind]:
            return True
        if kind == "None" and value is None:
            return True
        if kind == "str" and isinstance(value, str):
            return True
        if kind == "bool" and isinstance(value, bool):
            return True
        if kind == "int" and type(value) is int:
            return bool(value > field.get("gt", value - 1) and value >= field.get("ge", value))
        if kind == "float" and type(value) in (int, float):
            return True
        if kind == "list[tuple[int, int, int]]" and isinstance(value, list):
            return _schedule(value)
    return False


def _schedule(value: list[Any]) -> bool:
    """Ranges (first, last, K) that begin at 1, rise and do not overlap, as vLLM checks them."""
    end = 0
    for place, entry in enumerate(value):
        if not isinstance(entry, list) or len(entry) != 3 or any(type(n) is not int for n in entry):
            return False
        first, last, k = entry
        if first <= end or last < first or k < 0 or (place == 0 and first != 1):
            return False
        end = last
    return bool(value)


def _refusal(wanted: Wanted) -> str | None:
    if wanted.dtype not in _DTYPES:
        return f"has no dtype {wanted.dtype}"
    if wanted.target.startswith("mini-"):
        return f"cannot open {wanted.target} by name: give the folder of a checkpoint"
    if wanted.drafter is None or not max(wanted.ks, default=0):
        return None
    parts = [part.partition(":")[0] for part in wanted.drafter.split("+")]
    if len(parts) > 1:
        return f"has one drafter at a time and cannot mix {' and '.join(parts)}"
    if parts[0] not in ("model", "ngram"):
        return f"has no drafter like {parts[0]}"
    if parts[0] == "model" and (wanted.draft is None or wanted.draft.startswith("mini-")):
        return "needs the draft model's folder or hub id, and none is known"
    refused = [name for name in _REFUSED if name in wanted.sampling]
    if refused:
        return f"refuses requests with {' or '.join(refused)} while it speculates"
    if wanted.same_text:
        return (
            "does not give the same text at the same seed with and without speculation, which the "
            "rule match does: leave --same-text out if the same distribution is enough"
        )
    return None


def _speculative(wanted: Wanted, most: int) -> dict[str, Any]:
    assert wanted.drafter is not None
    name, _, options = wanted.drafter.partition(":")
    config: dict[str, Any] = {"method": "draft_model" if name == "model" else "ngram"}
    if name == "model":
        config["model"] = wanted.draft
        # What makes a sampled draft's acceptance the overlap of the two distributions.
        config["draft_sample_method"] = "probabilistic"
    else:
        given = dict(part.split("=", 1) for part in options.split(",") if "=" in part)
        config["prompt_lookup_min"] = int(given.get("min", 2))
        config["prompt_lookup_max"] = int(given.get("max", 8))
    config["num_speculative_tokens"] = most
    if wanted.rule == "block":
        config["rejection_sample_method"] = "block"
    if len(set(wanted.ks)) > 1:
        config["num_speculative_tokens_per_batch_size"] = schedule(wanted.loads, wanted.ks)
    return config


def schedule(loads: Sequence[int], ks: Sequence[int]) -> list[list[int]]:
    """Ranges (first, last, K): each load's K from behind the load before it up to itself. Equal
    neighbours are one."""
    found: list[list[int]] = []
    first = 1
    for load, k in zip(loads, ks, strict=True):
        if found and found[-1][2] == k:
            found[-1][1] = load
        else:
            found.append([first, load, k])
        first = load + 1
    return found


def _notes(wanted: Wanted) -> list[str]:
    notes = []
    if wanted.rule == "match":
        notes.append(
            "vLLM keeps the distribution, not the text: with a seed, texts differ from those "
            "without speculation, where the rule match gives the same."
        )
    if len(set(wanted.ks)) > 1:
        notes.append(
            "K goes by the number of running texts alone, from this plan's table; paceline goes by "
            "the acceptance of each text too. vLLM ignores the table with data parallelism."
        )
    notes.append("Requests with min_p or logit_bias are refused while it speculates.")
    return notes
