"""The application: which path does what. Everything else has a file of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline import ConfigError, Engine, EngineClosedError, Grammar, RequestError, __version__
from paceline.server.answering import Exchange, answer_stream, answer_whole
from paceline.server.asking import Ask, ask_chat, ask_completion, ask_warm
from paceline.server.body import read_body
from paceline.server.border import Guarded, Recorded
from paceline.server.document import described
from paceline.server.errors import ApiError, refused, told
from paceline.server.gate import Gate
from paceline.server.generation import Generation
from paceline.server.house import House
from paceline.server.metrics import Metrics
from paceline.server.pieces import Pieces
from paceline.server.record import Record, log_failure
from paceline.server.settings import ServerSettings
from paceline.server.shapes import ChatShape, CompletionShape, Shape
from paceline.server.static import Page
from paceline.server.structured import bound
from paceline.server.tokens import detokenized, tokenized
from paceline.server.tools import ChatFormat
from paceline.server.traffic import TrafficFile
from paceline.server.watch import Watch
from paceline.server.wire import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Generating,
    TokenizeBody,
    WarmBody,
    Wire,
    parse,
)

_INLINE = 16 << 10  # bytes of a body that are read and tokenized without leaving the event loop

_Body = TypeVar("_Body", bound=Wire)
_Meant = TypeVar("_Meant")
_Writing = TypeVar("_Writing", bound=Generating)


@dataclass(frozen=True, slots=True)
class _Read(Generic[_Body, _Meant]):
    """A request's body, what it comes to, and the bytes that said so."""

    body: _Body
    meant: _Meant
    data: bytes


class Api:
    """The handlers, over one engine."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings
        self.gate = Gate(engine.limits.slots - 1, settings.queue, lambda: engine.ended)
        self.metrics = Metrics(engine.stats, self.gate, settings.metrics_prefix, settings.name)
        if settings.chat_template is not None:
            engine.tokenizer.use_chat_template(settings.chat_template)
        self._house = House.of(settings, engine.config.target)
        limit = settings.record_limit << 20
        self.traffic = None if settings.record is None else TrafficFile(settings.record, limit)
        self.watch = Watch(engine, settings, self._house.sampling)
        self._pieces = Pieces(engine.tokenizer)
        self._formats = ChatFormat.of(engine, settings.tool_parser, settings.reasoning)
        with contextlib.suppress(RequestError):  # not installed, which whoever asks is told
            engine.check_grammar(Grammar("json_object"))  # makes the compiler: seconds, once
        config = engine.config
        made = f"{__version__} {config.target} {config.dtype} {config.rule}"
        made += f" {settings.chat_template}" if settings.chat_template is not None else ""
        made += f" {settings.chat_template_kwargs}" if settings.chat_template_kwargs else ""
        self._fingerprint = f"fp_{hashlib.sha256(made.encode()).hexdigest()[:12]}"
        self._created = int(time.time())
        # Not the loop's own threads, which read bodies: a piece waits for the engine's.
        self._scorers = ThreadPoolExecutor(1, "paceline-score")

    # --- OpenAI's ---

    async def completions(self, request: Request) -> Response:
        understand = partial(ask_completion, house=self._house)
        read = await self._read(request, CompletionBody, understand)
        ids = bool(read.body.return_token_ids)
        shape = CompletionShape(read.body.model, self._pieces, self._fingerprint, ids)
        return await self._answer(request, read, shape)

    async def chat(self, request: Request) -> Response:
        understand = partial(ask_chat, formats=self._formats, house=self._house)
        read = await self._read(request, ChatBody, understand)
        shape = ChatShape(
            read.body.model,
            self._pieces,
            self._fingerprint,
            read.meant.reading,
            self.settings.reasoning_fields,
            ids=bool(read.body.return_token_ids),
        )
        return await self._answer(request, read, shape)

    async def models(self, request: Request) -> Response:
        names = self.settings.names
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._check_model(name)
        return JSONResponse(self._model(name))

    # --- beyond it ---

    async def warm(self, request: Request) -> Response:
        """Fill the prefix cache with a prompt whose question is still to come."""
        understand = partial(ask_warm, house=self._house)
        ask = (await self._read(request, WarmBody, understand)).meant
        exchange = self._exchange(request, ask)
        shape = CompletionShape(self.settings.name, self._pieces, self._fingerprint)
        await answer_whole(exchange, shape)
        return JSONResponse({"object": "warm", "prompt_tokens": ask.prompt_tokens})

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a prompt or of messages."""
        understand = partial(tokenized, house=self._house)
        return JSONResponse((await self._read(request, TokenizeBody, understand)).meant)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return JSONResponse((await self._read(request, DetokenizeBody, detokenized)).meant)

    async def live(self, request: Request) -> Response:
        """200 while the process is worth keeping: 503 once the engine has stopped for good."""
        if self.gate.broken is not None:
            return JSONResponse({"status": "broken", "reason": str(self.gate.broken)}, 503)
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken."""
        if self.gate.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "draining" if self.gate.draining else "broken"}, 503)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def figures(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": self.metrics.content_type})

    # --- shared ---

    async def _read(
        self, request: Request, kind: type[_Body], understand: Callable[[_Body, Engine], _Meant]
    ) -> _Read[_Body, _Meant]:
        """Read, check and tokenize a body; in a thread, so that streams go on, where it is large or
        has something to compile."""
        data = await read_body(request, self.settings.max_body)

        def understood(body: _Body) -> _Read[_Body, _Meant]:
            assert isinstance(body, Generating | WarmBody | TokenizeBody | DetokenizeBody)
            if body.model is not None:
                self._check_model(body.model)
            if isinstance(body, Generating):
                self._check_priority(body.priority or 0)
            return _Read(body, understand(body, self.engine), data)

        if len(data) > _INLINE:
            return await asyncio.to_thread(lambda: understood(parse(kind, data)))
        body = parse(kind, data)
        compiles = isinstance(body, Generating) and bound(body)
        if compiles or (isinstance(body, ChatBody) and body.tools):
            return await asyncio.to_thread(understood, body)
        return understood(body)

    async def _answer(self, request: Request, read: _Read[_Writing, Ask], shape: Shape) -> Response:
        def ended(generation: Generation) -> None:
            self.metrics.ended(generation)
            if self.traffic is not None:
                self.traffic.take(read.data, generation)

        exchange = self._exchange(request, read.meant, ended)
        if read.body.stream:
            return await answer_stream(
                exchange, shape, read.body.stream_options, self.settings.ping
            )
        return await answer_whole(exchange, shape)

    def _exchange(
        self, request: Request, ask: Ask, ended: Callable[[Generation], None] | None = None
    ) -> Exchange:
        return Exchange(request, self.gate, ask, self._begin, ended, self.watch.load.saw)

    def _begin(self, ask: Ask, began: float) -> Generation:
        timeout = self.settings.timeout or None
        return Generation(self.engine, ask, began, timeout, self._scorers)

    def _check_model(self, name: str) -> None:
        if name not in self.settings.names:
            raise ApiError(
                404,
                f"the model {name!r} does not exist here; this server has "
                f"{', '.join(self.settings.names)}",
                param="model",
                code="model_not_found",
            )

    def _check_priority(self, priority: int) -> None:
        """Nobody goes before others, or is passed over, but as the operator allows."""
        most = self.settings.max_priority
        if not -most <= priority <= most:
            bound = f"from {-most} to {most}" if most else "of 0 only; its operator may allow more"
            message = f"this server takes a priority {bound}, not {priority}"
            raise refused(message, "priority", "invalid_value")

    def _model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "paceline",
            "max_model_len": self.engine.limits.max_length,
        }


Handler = Callable[[Request], Awaitable[Response]]


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The application over an engine that stays the caller's, but for a chat template of the
    settings', which its tokenizer is given. `app.state.api` is its `Api`."""
    api = Api(engine, settings)
    middleware = [Middleware(Recorded, seen=api.metrics.answered)]
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    middleware.append(Middleware(Guarded, keys=settings.api_keys))
    app = FastAPI(
        title="paceline",
        version=__version__,
        middleware=middleware,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.api = api
    routes: tuple[tuple[str, str, Handler, type[Wire] | None], ...] = (
        ("GET", "/v1/models", api.models, None),
        ("GET", "/v1/models/{name:path}", api.model, None),
        ("POST", "/v1/completions", api.completions, CompletionBody),
        ("POST", "/v1/chat/completions", api.chat, ChatBody),
        ("POST", "/v1/warm", api.warm, WarmBody),
        ("POST", "/tokenize", api.tokenize, TokenizeBody),
        ("POST", "/detokenize", api.detokenize, DetokenizeBody),
        ("GET", "/health", api.ready, None),
        ("GET", "/health/live", api.live, None),
        ("GET", "/health/ready", api.ready, None),
        ("GET", "/version", api.version, None),
        ("GET", "/metrics", api.figures, None),
        ("GET", "/v1/paceline", api.watch.about, None),
        ("GET", "/v1/paceline/load", api.watch.figures, None),
    )
    for method, path, handler, body in routes:
        app.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=None,
            openapi_extra=described(body, path),
        )
    if settings.page:
        page = Page()
        app.add_api_route("/", page.root, include_in_schema=False)
        app.add_api_route("/page/{name}", page.file, include_in_schema=False)
    for kind in (ApiError, RequestError, ConfigError, EngineClosedError):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(HTTPException, _unrouted)
    return app


async def _told(request: Request, error: Exception) -> Response:
    problem = told(error)
    record = Record.of(request.scope)
    record.error = problem.message
    if not isinstance(error, ApiError) and problem.status >= 500:
        log_failure(record, error)
    return problem.response()


async def _unrouted(request: Request, error: Exception) -> Response:
    """404 and 405, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:200], dict(error.headers or {})
    message = f"{request.method} {path}: {error.detail}"
    return ApiError(error.status_code, message, code="unknown_url", headers=headers).response()
