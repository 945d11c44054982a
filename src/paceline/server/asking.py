"""From a request's body to what the engine is asked for: token ids, parameters, seeds.

Every rule that spans several fields is here; the engine is read (its tokenizer, its limits) and
asked for nothing but to compile grammars.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace

from paceline import Engine, Grammar, SamplingParams
from paceline.server.errors import refused, unsupported
from paceline.server.house import House
from paceline.server.prompts import (
    asked_filling,
    chat_prompt,
    completion_prompts,
    given_prompt,
    given_prompts,
)
from paceline.server.reading import Reading
from paceline.server.sampling import drawn
from paceline.server.structured import asked_grammar, checked
from paceline.server.tool_families import FAMILIES
from paceline.server.tools import ChatFormat, Tools, asked_tools, text_of
from paceline.server.unserved import refuse_unserved
from paceline.server.wire import ChatBody, CompletionBody, Generating, WarmBody

_SEEDS = 1 << 63
_TAIL = 16  # tokens of a prompt's end in which a mark that it leaves open would stand
NO_SEED = -1  # as clients of other servers write it
DEFAULT_TOKENS = 16  # of a completion, as OpenAI's


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request to the engine. prompts: token ids each; echoes: the prompts as text where
    they are to be repeated; seeds: one list a prompt, one seed a choice; grammar: what the texts
    must be; reading: what to look for in them; scored: how many of the most likely tokens to tell
    of at each place of the prompts, None to tell nothing of them; write: whether anything is to be
    written at all; metrics: whether the answer tells what came of the drafts."""

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    seeds: tuple[tuple[int, ...], ...]
    prediction: tuple[int, ...] = ()
    k: int | None = None
    priority: int = 0
    echoes: tuple[str, ...] | None = None
    grammar: Grammar | None = None
    reading: Reading = field(default_factory=Reading)
    scored: int | None = None
    write: bool = True
    metrics: bool = False

    @property
    def texts(self) -> int:
        """How many texts are to be written."""
        return sum(map(len, self.seeds))

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def ask_completion(body: CompletionBody, engine: Engine, house: House) -> Ask:
    """What a completion asks for. Raises ApiError and the engine's errors."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "best_of other than n is not supported; ask for n texts")
    if body.max_tokens == 0 and not body.echo:
        message = "max_tokens of 0 asks for no text: send 1 or more, or echo"
        raise refused(message, "max_tokens", "invalid_value")
    refuse_unserved(body)
    prompts = completion_prompts(body, engine)
    write = body.max_tokens != 0
    _check_prompts(prompts, engine, "prompt", write)
    most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if write:
        named = None if body.max_tokens is None else "max_tokens"
        most = _room(prompts, most, named, engine, house)
    echoes = None
    if body.echo:
        given, decode = given_prompts(body), engine.tokenizer.decode
        echoes = tuple(p if isinstance(p, str) else decode(p) for p in given)
    params = _params(body, house.sampling, max(1, most), body.logprobs)
    filling = asked_filling(body, engine)
    if filling is not None and not body.ignore_eos:  # what comes behind the middle is none of it
        stops = dict.fromkeys((*params.stop_token_ids, *filling.stops))
        params = replace(params, stop_token_ids=tuple(stops))
    ask = _ask(body, engine, prompts, params)
    scored = body.logprobs if body.echo else None
    if scored is not None and body.logprobs_mode == "processed_logprobs":
        raise refused("a prompt is not drawn: its log-probabilities are the model's own",
                      "logprobs_mode", "invalid_value")  # fmt: skip
    return replace(ask, echoes=echoes, scored=scored, write=write)


def ask_chat(body: ChatBody, engine: Engine, formats: ChatFormat, house: House) -> Ask:
    """What a chat asks for. Raises ApiError and the engine's errors."""
    if any(kind != "text" for kind in body.modalities or ()):
        raise unsupported("modalities", "only text is written")
    refuse_unserved(body)
    tools = asked_tools(body, formats)
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
    if body.max_tokens and body.max_completion_tokens not in (None, body.max_tokens):
        raise refused("give max_completion_tokens or max_tokens, not both", "max_tokens")
    prompts = [chat_prompt(body, engine, tools.given if tools else None, house.template)]
    _check_prompts(prompts, engine, "messages")
    given = body.max_completion_tokens or body.max_tokens
    name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    named = None if given is None else name
    most = _room(prompts, given or engine.limits.max_length, named, engine, house)
    params = _params(
        body, house.sampling, most, (body.top_logprobs or 0) if body.logprobs else None
    )
    ask = _ask(body, engine, prompts, params)
    return _chat_parts(ask, body, engine, formats, tools)


def _chat_parts(
    ask: Ask, body: ChatBody, engine: Engine, formats: ChatFormat, tools: Tools | None
) -> Ask:
    """`ask` with what is to be found in its texts, and with a grammar where that is forced."""
    marks = formats.marks if body.separate_reasoning is not False else None
    end = engine.tokenizer.decode(ask.prompts[0][-_TAIL:], skip_special_tokens=False).rstrip()
    opened = formats.marks is not None and end.endswith(formats.marks.begin)
    if body.continue_final_message and formats.marks is not None:
        last = text_of(body.messages[-1].content or "", "messages")
        opened = last.rfind(formats.marks.begin) > last.rfind(formats.marks.end)
    grammar = tools.grammar(engine, formats, ask.grammar) if tools else ask.grammar
    budget = body.thinking_token_budget
    if budget is not None:
        if formats.marks is None:
            message = "no reasoning is told from the answer here: leave thinking_token_budget out"
            raise unsupported("thinking_token_budget", message)
        grammar = grammar or Grammar("any")
    if grammar is not None and formats.marks is not None:
        # Thinking is free, up to its budget; the answer behind it is bound.
        begin = "" if opened else formats.marks.begin
        grammar = replace(grammar, after=formats.marks.end, opened_by=begin, budget=budget)
    if grammar is not None:
        checked(engine, grammar, "tools" if tools else "response_format")
    reading = Reading(marks, opened and marks is not None)
    if tools is not None:
        reading = replace(
            reading,
            family=tools.family,
            names=tools.names,
            most=None if tools.several else 1,
            id_size=FAMILIES[tools.family].id_size,
        )
    params = ask.params
    if marks is not None and params.stop and marks.end not in params.stop:
        # They are meant for the answer: in the reasoning they would leave none.
        begin = "" if opened else marks.begin
        params = replace(params, stop_after=marks.end, stop_opened_by=begin)
    if not reading.plain and formats.tokens_hidden and body.skip_special_tokens is None:
        params = replace(params, skip_special_tokens=False)
    return replace(ask, params=params, grammar=grammar, reading=reading)


def ask_warm(body: WarmBody, engine: Engine, house: House) -> Ask:
    """Read a prompt into the prefix cache: one token is asked for, and dropped."""
    prompt = given_prompt(body, engine, house.template)
    _check_prompts([prompt], engine, "prompt" if body.messages is None else "messages")
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    return Ask((tuple(prompt),), params, ((0,),), k=0)


def derived_seed(seed: int, choice: int) -> int:
    """The seed of a request's choice: the first has the request's own."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _SEEDS


def _params(
    body: Generating, house: SamplingParams, most: int, logprobs: int | None
) -> SamplingParams:
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options needs stream to be true", "stream_options", "invalid_value")
    if (body.min_tokens or 0) > most:
        raise refused("min_tokens must not exceed max_tokens", "min_tokens", "invalid_value")
    return drawn(body, house, most, logprobs)


def _ask(body: Generating, engine: Engine, prompts: list[list[int]], params: SamplingParams) -> Ask:
    expected: list[int] = []
    if body.prediction is not None:
        text = text_of(body.prediction.content, "prediction.content")
        expected = engine.tokenizer.encode(text, add_special_tokens=False)
    grammar = asked_grammar(body)
    return Ask(
        prompts=tuple(map(tuple, prompts)),
        params=params,
        seeds=tuple(_seeds(body, engine) for _ in prompts),
        prediction=tuple(expected),
        k=_draft_tokens(body, engine),
        priority=body.priority or 0,
        grammar=None if grammar is None else checked(engine, *grammar),
        metrics=bool(body.include_metrics),
    )


def _seeds(body: Generating, engine: Engine) -> tuple[int, ...]:
    """A seed for every choice of one prompt. A prompt's texts do not depend on its neighbours."""
    seed = None if body.seed in (None, NO_SEED) else body.seed
    seed = engine.config.seed if seed is None else seed % _SEEDS
    if seed is None:
        seed = secrets.randbits(63)
    return tuple(derived_seed(seed, choice) for choice in range(body.n or 1))


def _draft_tokens(body: Generating, engine: Engine) -> int | None:
    wanted, opened = body.speculative, engine.config
    if wanted is None:
        return None
    if wanted.rule not in (None, opened.rule):
        raise unsupported("speculative", f"this server verifies by the rule {opened.rule!r}")
    if wanted.k is not None and wanted.k > opened.k:
        raise refused(f"speculative.k is at most {opened.k} here", "speculative", "invalid_value")
    return 0 if wanted.enabled is False else wanted.k


def _check_prompts(
    prompts: list[list[int]], engine: Engine, param: str, write: bool = True
) -> None:
    if not prompts:
        raise refused(f"{param} is empty: give at least one", param, "invalid_value")
    longest = max(map(len, prompts))
    limit = engine.room(0) if write else engine.limits.max_length
    if longest + write > limit:
        message = (
            f"this model's context holds {limit} tokens and the {param} has {longest}: shorten it"
        )
        raise refused(message, param, "context_length_exceeded")


def _room(
    prompts: list[list[int]], most: int, named: str | None, engine: Engine, house: House
) -> int:
    """The most tokens that may be written. named: the field in which the client asked for `most`,
    if it did."""
    longest = max(map(len, prompts))
    room = engine.room(longest)
    if most > room and named is not None and not house.cuts:
        message = (
            f"this model's context holds {room + longest} tokens; the prompt has {longest} and "
            f"{named} asks for {most}: ask for at most {room}"
        )
        raise refused(message, named, "context_length_exceeded")
    return min(most, room)
