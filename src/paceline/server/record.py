"""What the log says of one request, and the log itself: one JSON object a line.

Never a header, a query, a prompt or a key.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import Scope

from paceline.server.generation import Text

log = logging.getLogger("paceline.server")

_NAME = "paceline.record"  # in the scope
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class Record:
    """One request, from its first byte to its answer's last."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    prompt_tokens: int | None = None
    tokens: int | None = None
    ttft: float | None = None
    finish: str | None = None
    error: str | None = None

    @classmethod
    def begin(cls, scope: Scope) -> Record:
        """The record of a request that just came; its id is the client's, if it gave a sane one."""
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        name = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        scope[_NAME] = record = cls(name, scope["method"], scope["path"])
        return record

    @staticmethod
    def of(scope: Scope) -> Record:
        record = scope[_NAME]
        assert isinstance(record, Record)
        return record

    def written(self, prompt_tokens: int, texts: Sequence[Text]) -> None:
        """Book what the request's texts came to."""
        self.prompt_tokens, self.tokens = prompt_tokens, sum(text.tokens for text in texts)
        self.ttft = min((t.first_at - self.began for t in texts if t.first_at), default=None)
        self.finish = ",".join(dict.fromkeys(text.finish or "cancelled" for text in texts))

    def tell(self) -> None:
        """Write the line."""
        fields: dict[str, object] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:200],
            "status": self.status,
            "seconds": round(time.monotonic() - self.began, 6),
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "ttft": None if self.ttft is None else round(self.ttft, 6),
            "finish": self.finish,
            "error": self.error,
        }
        tell("request", **{key: value for key, value in fields.items() if value is not None})


def tell(event: str, **fields: object) -> None:
    """Log one event with its fields."""
    log.info(event, extra={"fields": fields})


def log_failure(record: Record, error: Exception) -> None:
    """Log what went wrong inside, with its trace; the client was told less."""
    fields = {"request_id": record.id, "path": record.path[:200]}
    log.error("failure", extra={"fields": fields}, exc_info=error)


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Send what the server, the engine and uvicorn have to say to standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("paceline", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
