"""The OpenAPI document against the server: schemathesis makes requests of it, good and bad."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.server.tools import Call, in_process

from paceline import Engine
from paceline.server.settings import ServerSettings

EXAMPLES = 20  # a path
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def call(engine: Engine) -> Call:
    return in_process(engine, ServerSettings(name="mini"))


WRITTEN = (
    "/v1/completions", "/v1/chat/completions", "/v1/warm", "/tokenize", "/detokenize",
)  # fmt: skip
CASES = [
    *((path, mode) for path in WRITTEN for mode in GenerationMode),
    ("/v1/models/{name}", GenerationMode.POSITIVE),  # any name may be asked for
]


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_requests_made_of_the_document(
    path: str, mode: GenerationMode, call: Call, bounded: Callable[[Case], None]
) -> None:
    document = call("GET", "/openapi.json").json
    schema = schemathesis.openapi.from_dict(document)
    schema.app = call.app
    operation = schema[path]["POST" if "post" in document["paths"][path] else "GET"]

    def check(case: Case) -> None:
        bounded(case)
        case.call_and_validate(checks=CHECKS)

    strategy = operation.as_strategy(generation_mode=mode)
    few = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    few(given(strategy)(check))()
    assert call.api.gate.inside == 0


@pytest.fixture
def bounded() -> Callable[[Case], None]:
    """Names the model and keeps what a request may cost small; the rest stays as it was drawn."""

    def bound(case: Case) -> None:
        body = case.body
        if not isinstance(body, dict):
            return
        if isinstance(body.get("model"), str) and body["model"]:
            body["model"] = "mini"
        body.setdefault("max_tokens", 3)
        if isinstance(body.get("prompt"), list):
            del body["prompt"][3:]
        for name, most in (("max_tokens", 3), ("max_completion_tokens", 3), ("n", 2)):
            if type(body.get(name)) is int and body[name] > most:
                body[name] = most

    return bound
