"""The bundled pair behind a real server on a loopback socket, and the same in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest
from openai import OpenAI
from tests.server.tools import Call, Served, in_process, serve_in_thread

from paceline import Engine
from paceline.server.settings import ServerSettings


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The bundled pair with drafts at every row; K is fixed, so that counts can be told."""
    with Engine(
        "mini-target",
        draft="mini-draft",
        drafter="predicted+model",
        dtype="float32",
        threads=1,
        adaptive=False,
        max_length=512,
    ) as engine:
        yield engine


@pytest.fixture(scope="session")
def served(engine: Engine) -> Iterator[Served]:
    with serve_in_thread(engine, ServerSettings(name="mini", aliases=("mini-target",))) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """The official client, unmodified."""
    with OpenAI(
        base_url=f"{served.url}/v1",
        api_key="any",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


@pytest.fixture
def app(engine: Engine) -> Callable[..., Call]:
    """Call an application in process: `app(queue=0)("POST", "/v1/…", {...})`."""

    def make(**settings: object) -> Call:
        return in_process(engine, ServerSettings(name="mini", **settings))  # type: ignore[arg-type]

    return make
