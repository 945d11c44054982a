"""What a text must be: from a request's `response_format` or `structured_outputs` to a grammar.

A grammar is compiled before anything is written, so that one which cannot be used is a 400.
"""

from __future__ import annotations

import json
import re

from paceline import Engine, Grammar, RequestError
from paceline.server.errors import ApiError, refused
from paceline.server.wire import Generating, ResponseFormat, StructuredOutputs


def bound(body: Generating) -> bool:
    """Whether the request binds its text: such a request may take long to compile."""
    given = body.response_format
    return body.structured_outputs is not None or (given is not None and given.type != "text")


def asked_grammar(body: Generating) -> tuple[Grammar, str] | None:
    """What the text must be, and the field that says so. Raises ApiError."""
    if not bound(body):
        return None
    if body.ignore_eos:
        message = "what the text must be says where it ends: leave ignore_eos out"
        raise refused(message, "ignore_eos", "invalid_value")
    if body.structured_outputs is None:
        assert body.response_format is not None
        return _of_format(body.response_format), "response_format"
    if body.response_format is not None and body.response_format.type != "text":
        message = "give response_format or structured_outputs, not both"
        raise refused(message, "structured_outputs", "invalid_value")
    return _of_outputs(body.structured_outputs), "structured_outputs"


def checked(engine: Engine, grammar: Grammar, param: str, name: str | None = None) -> Grammar:
    """`grammar`, compiled. Raises ApiError, which names the field. name: what the message calls it,
    where that is more than the field."""
    try:
        engine.check_grammar(grammar)
    except RequestError as error:
        raise refused(f"{name or param}: {error}", param, "invalid_value") from error
    return grammar


def _of_format(given: ResponseFormat) -> Grammar:
    schema, named = given.schema_, given.json_schema
    if named is not None and schema is not None:
        message = "response_format has a schema and a json_schema: leave one"
        raise refused(message, "response_format", "invalid_value")
    if given.type == "json_schema" and named is None and schema is None:
        raise _missing("response_format.json_schema", "response_format")
    if named is not None:
        schema = named.schema_
    elif given.type == "json_object" and schema == {}:
        schema = None  # nothing is said of it but that it is an object
    return Grammar("json_object") if schema is None else Grammar("json_schema", json.dumps(schema))


def _of_outputs(given: StructuredOutputs) -> Grammar:
    found = [
        grammar
        for grammar in (
            None if given.json_ is None else Grammar("json_schema", _text(given.json_)),
            Grammar("json_object") if given.json_object else None,
            None if given.regex is None else Grammar("regex", given.regex),
            None if given.choice is None else Grammar("regex", _one_of(given.choice)),
            None if given.grammar is None else Grammar("lark", given.grammar),
        )
        if grammar is not None
    ]
    if len(found) != 1:
        message = "structured_outputs takes one of json, json_object, regex, choice and grammar"
        raise refused(message, "structured_outputs", "invalid_value")
    return found[0]


def _text(schema: dict[str, object] | str) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema)


def _one_of(texts: list[str]) -> str:
    """A regular expression that matches exactly these texts."""
    return "|".join(f"({re.escape(text)})" for text in texts)


def _missing(name: str, param: str) -> ApiError:
    return refused(f"{name!r} is missing", param, "missing_required_parameter")
