"""What the page asks beside OpenAI's API: what this server is, and its load."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from paceline import Engine, SamplingParams, __version__
from paceline.server.errors import refused
from paceline.server.load import Load
from paceline.server.sampling import told
from paceline.server.settings import ServerSettings


class Watch:
    """The handlers under /v1/paceline."""

    def __init__(self, engine: Engine, settings: ServerSettings, house: SamplingParams) -> None:
        """house: the sampling of requests that do not say."""
        self._engine, self._settings, self._house = engine, settings, house
        self.load = Load(engine.stats)

    @property
    def served(self) -> dict[str, object]:
        """What is served and within what limits; k 0 where nothing can be drafted."""
        config, limits = self._engine.config, self._engine.limits
        return {
            "version": __version__,
            "chat": self._engine.tokenizer.has_chat_template,
            "target": Path(config.target).name,
            "drafter": config.drafter,
            "draft": None if config.draft is None else Path(config.draft).name,
            "k": 0 if config.drafter == "none" else config.k,
            "adaptive": config.adapts,
            "rule": config.rule,
            "device": config.device,
            "dtype": config.dtype,
            "slots": config.slots,
            "max_length": limits.max_length,
            "cache_tokens": limits.positions,
            "sampling": told(self._house, self._settings.sampling),
        }

    async def about(self, request: Request) -> Response:
        """What is served, to whoever asks."""
        return JSONResponse({"object": "server", "model": self._settings.name, **self.served})

    async def figures(self, request: Request) -> Response:
        """The load; `?after=N` leaves out the samples up to number N."""
        given = request.query_params.get("after", "0")
        if not (given.isascii() and given.isdecimal() and len(given) < 16):
            raise refused("after must be the number of a sample", "after", "invalid_value")
        return JSONResponse(self.load.told(int(given)), headers={"cache-control": "no-store"})
