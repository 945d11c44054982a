"""Serving until a signal: listen, say so, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import FrameType

import uvicorn

from paceline import ConfigError, Engine
from paceline.server.app import Api, create_app
from paceline.server.file import settle
from paceline.server.load import SECONDS
from paceline.server.protocol import BoundedHttp
from paceline.server.record import log_to_stderr, tell
from paceline.server.settings import ServerSettings

__all__ = ["Server", "address", "bind", "log_to_stderr", "run", "settle"]

_KEEP_ALIVE = 75  # seconds an idle connection is kept: longer than the proxies in front keep theirs
_LAST_BYTES = 5  # seconds that answers have to leave once every text is written


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one. Connections are refused until it is served.

    Raises ConfigError where the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    return made


def address(bound: socket.socket) -> str:
    """The URL under which the socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(engine: Engine, settings: ServerSettings, bound: socket.socket) -> bool:
    """Serve until SIGTERM or SIGINT, then refuse what comes and finish what runs.

    Returns whether everything was finished. A second signal stops at once; an engine that ended
    for good stops it, too.
    """
    server = Server(engine, settings)
    server.run(sockets=[bound])
    return server.finished


class Server(uvicorn.Server):
    """uvicorn's server; a signal drains it before it stops."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        app = create_app(engine, settings)
        api = app.state.api
        assert isinstance(api, Api)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                http=BoundedHttp,
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_LAST_BYTES,
            )
        )
        self.api, self.finished = api, True
        self._patience = settings.drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._sampling: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._sampling = self._loop.create_task(self._keep_watch())
        await super().startup(sockets)
        if self.started and sockets:
            config = self.api.engine.config
            tell(
                "ready",
                url=address(sockets[0]),
                models=list(self.api.settings.names),
                device=config.device,
                slots=config.slots,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
        await super().shutdown(sockets)

    async def _keep_watch(self) -> None:
        """Sample the load; an engine that ended for good ends the server, for whoever starts it
        again to see."""
        while self.api.gate.broken is None:
            await asyncio.sleep(SECONDS)
            self.api.watch.load.sample()
        tell("broken", reason=str(self.api.gate.broken))
        self.drain()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the next one stops. Nothing is raised again at the end: a
        server that was told to stop, and did, ends with status 0."""
        if self.api.gate.draining or self._loop is None:
            self.finished = self.api.gate.inside == 0
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Refuse what comes, and stop once nobody is inside or patience is over."""
        self.api.gate.draining = True
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        tell("draining", texts=self.api.gate.inside)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await self.api.gate.emptied()
        if not self.force_exit:  # else texts have been broken off, and it is told already
            self.finished = self.api.gate.inside == 0 and self.api.gate.broken is None
        self.should_exit = True
        tell("stopping", unfinished=self.api.gate.inside)
