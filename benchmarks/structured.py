"""Random JSON schemas asked of a server, many at once, with speculation and without: how many are
taken, whether every answer parses and validates, whether speculation changes one. See README.md.

The bundled pair behind a real socket, asked by OpenAI's client.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import openai
import torch
from gpu_common import first_difference, say
from jsonschema import Draft202012Validator
from load_check import margin
from tests.server.schemas import random_schema
from tests.server.tools import serve_in_thread

import paceline
from paceline import Engine, sampling_params
from paceline.server.pieces import Pieces
from paceline.server.settings import ServerSettings

_PROMPT = "# One record as JSON\nrecord = json.loads('''"
_LISTED = 10


@dataclass(frozen=True)
class Answer:
    """status 200 with its text and token ids, or what was told instead."""

    status: int
    text: str = ""
    finish: str = ""
    tokens: tuple[int, ...] = ()
    error: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--schemas", type=int, default=500)
    add("--first", type=int, default=0, help="number of the first schema")
    add("--at-once", type=int, default=8)
    add("--max-tokens", type=int, default=600)
    add("--temperature", type=float, default=0.8)
    add("--k", type=int, default=5)
    add("--dtype", default="float32")
    add("--threads", type=int)
    add("--out", type=Path, help="write the JSON there too")
    o = parser.parse_args()
    schemas = [random_schema(o.first + number) for number in range(o.schemas)]
    began = time.perf_counter()
    with Engine(
        "mini-target", draft="mini-draft", drafter="predicted+model", k=o.k, adaptive=False,
        slots=o.at_once, dtype=o.dtype, threads=o.threads, max_length=o.max_tokens + 64,
        device="cpu",
    ) as engine, serve_in_thread(engine, ServerSettings(name="mini")) as served:  # fmt: skip
        ways: dict[str, list[Answer]] = {}
        for name, enabled in (("speculation", True), ("plain", False)):
            at = time.perf_counter()
            ways[name] = asyncio.run(_ask_all(served.url, engine, schemas, o, enabled))
            say(f"{name}: {len(schemas)} schemas in {time.perf_counter() - at:.0f} s")
        result = _told(engine, schemas, ways, o)
        stats = engine.stats()
    result |= {
        "acceptance_rate": stats.acceptance_rate,
        "accepted_by_source": stats.accepted_by_source,
        "seconds": round(time.perf_counter() - began, 1),
        "command": " ".join(["benchmarks/structured.py", *sys.argv[1:]]),
        "versions": {"paceline": paceline.__version__, "torch": torch.__version__,
                     "python": platform.python_version()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    text = json.dumps(result, ensure_ascii=False)
    if o.out:
        o.out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(text)
    sys.exit(0 if result["met"] else 1)


async def _ask_all(
    url: str, engine: Engine, schemas: list[dict[str, Any]], o: argparse.Namespace, enabled: bool
) -> list[Answer]:
    places = asyncio.Semaphore(o.at_once)
    pieces = Pieces(engine.tokenizer)
    ids = {pieces.name(token): token for token in range(engine.limits.vocab_size)}
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=None, http_client=http
    ) as client:

        async def ask(number: int) -> Answer:
            form = {"name": f"schema-{number}", "schema": schemas[number], "strict": True}
            async with places:
                try:
                    done = await client.completions.create(
                        model="mini", prompt=_PROMPT, max_tokens=o.max_tokens, seed=number,
                        temperature=o.temperature, logprobs=0,
                        extra_body={
                            "response_format": {"type": "json_schema", "json_schema": form},
                            "speculative": {"enabled": enabled},
                        },
                    )  # fmt: skip
                except openai.APIStatusError as error:
                    return Answer(error.status_code, error=error.message)
            (choice,) = done.choices
            assert choice.logprobs is not None
            tokens = tuple(ids[name] for name in choice.logprobs.tokens or ())
            return Answer(200, choice.text, choice.finish_reason, tokens)

        return list(await asyncio.gather(*map(ask, range(len(schemas)))))


def _told(
    engine: Engine, schemas: list[dict[str, Any]], ways: dict[str, list[Answer]],
    o: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    result: dict[str, Any] = {"schemas": len(schemas), "at_once": o.at_once}
    for name, answers in ways.items():
        result[name] = _counted(schemas, answers)
    prompt = engine.tokenizer.encode(_PROMPT)
    same, differ = 0, []
    for number, (a, b) in enumerate(zip(ways["plain"], ways["speculation"], strict=True)):
        place = first_difference(a.tokens, b.tokens)
        same += a.status == b.status and a.text == b.text
        if place is None:
            continue
        found: dict[str, Any] = {"schema": o.first + number, "place": place}
        if place < min(len(a.tokens), len(b.tokens)):
            params = sampling_params(temperature=o.temperature, seed=number)
            text = [*prompt, *a.tokens[:place]]
            found["margin"] = margin(engine, text, params, a.tokens[place], b.tokens[place])
        differ.append(found)
    result |= {"equal": same, "differences": differ[:_LISTED]}
    mine = result["speculation"]
    result["met"] = (
        mine["accepted"] >= 0.9 * len(schemas)
        and mine["accepted"] + mine["refused"] == len(schemas)
        and mine["valid"] == mine["finished"]
        and mine["cut"] <= 0.02 * mine["accepted"]
        and same + len(differ) == len(schemas)
    )
    return result


def _counted(schemas: list[dict[str, Any]], answers: list[Answer]) -> dict[str, Any]:
    taken = [(s, a) for s, a in zip(schemas, answers, strict=True) if a.status == 200]
    ended = [(s, a) for s, a in taken if a.finish == "stop"]
    parsed, valid, wrong = 0, 0, []
    for schema, answer in ended:
        try:
            value = json.loads(answer.text)
        except ValueError as error:
            wrong.append([answer.text, str(error)])
            continue
        parsed += 1
        fault = next(Draft202012Validator(schema).iter_errors(value), None)
        valid += fault is None
        if fault is not None:
            wrong.append([answer.text, fault.message])
    others = collections.Counter(a.error for a in answers if a.status == 400)
    return {
        "accepted": len(taken), "refused": sum(others.values()), "finished": len(ended),
        "parsed": parsed, "valid": valid, "cut": len(taken) - len(ended),
        "tokens": sum(len(a.tokens) for _, a in taken),
        "reasons": dict(others.most_common(_LISTED)),
        "other_statuses": sorted({a.status for a in answers} - {200, 400}),
        "wrong": wrong[:_LISTED],
    }  # fmt: skip


if __name__ == "__main__":
    main()
