"""What the log says of one request, and the log itself: a JSON object or a text, one a line.

Never a header, a query, a prompt or a key; a key that a client puts where none belongs (a path, a
request's id) is struck out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from starlette.types import Scope

from paceline.server.generation import Text
from paceline.server.settings import LogForm

log = logging.getLogger("paceline.server")

_NAME = "paceline.record"  # in the scope
_SHORTEST = 4  # characters of a key that is no part of common words
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Whose records are written, and from which level on.
_TOLD = {"paceline": logging.INFO, "uvicorn": logging.WARNING, "py.warnings": logging.WARNING}


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
    queue: float | None = None
    drafted: int | None = None
    accepted: int | None = None
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
        self.queue = max((text.stats.queue_seconds for text in texts), default=None)
        self.drafted = sum(text.stats.drafted for text in texts)
        self.accepted = sum(text.stats.accepted for text in texts)
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
            "queue": None if self.queue is None else round(self.queue, 6),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "finish": self.finish,
            "error": self.error,
        }
        tell("request", **{key: value for key, value in fields.items() if value is not None})


def tell(event: str, **fields: object) -> None:
    """Log one event with its fields."""
    log.info(event, extra={"fields": fields})


def warn(event: str, **fields: object) -> None:
    """Log what an operator should see to."""
    log.warning(event, extra={"fields": fields})


def log_failure(record: Record, error: Exception) -> None:
    """Log what went wrong inside, with its trace; the client was told less."""
    fields = {"request_id": record.id, "path": record.path[:200]}
    log.error("failure", extra={"fields": fields}, exc_info=error)


class Lines(logging.Formatter):
    """A line a record, its event's fields behind it; keys are struck out wherever they stand."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """keys: what no line may show."""
        super().__init__()
        # The longest first: one key may begin with another. As JSON writes them, too.
        spelled = {form for key in keys for form in (key, json.dumps(key)[1:-1])}
        spelled = {form for form in spelled if len(form) >= _SHORTEST}
        self._keys = sorted(spelled, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record)
        for key in self._keys:
            line = line.replace(key, "***")
        return line

    def line(self, record: logging.LogRecord) -> str:
        """`time level event name=value …`, for the eye; a trace takes lines of its own."""
        fields = " ".join(
            f"{name}={json.dumps(value, ensure_ascii=False, default=str)}"
            for name, value in _fields(record).items()
        )
        words = (_time(record), record.levelname.lower(), " ".join(record.getMessage().split()))
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return " ".join((*words, fields)).rstrip() + trace


class JsonLines(Lines):
    """One JSON object a record: time, level, event, and the event's fields."""

    def line(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class _Stderr(logging.Handler):
    """Writes to what is standard error at the time: on a terminal something else may stand there
    while progress is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


@contextmanager
def log_to_stderr(form: LogForm = "json", keys: Iterable[str] = ()) -> Iterator[None]:
    """While the block runs, send what the server, the engine, uvicorn and Python's warnings have to
    say to standard error. keys: what no line may show."""
    handler = _Stderr()
    handler.setFormatter(JsonLines(keys) if form == "json" else Lines(keys))
    with ExitStack() as before:
        for name, level in _TOLD.items():
            logger = logging.getLogger(name)
            before.callback(_restore, logger, logger.handlers[:], logger.level, logger.propagate)
            logger.handlers[:] = [handler]
            logger.setLevel(level)
            logger.propagate = False
        logging.captureWarnings(True)
        before.callback(logging.captureWarnings, False)
        yield


def _restore(
    logger: logging.Logger, handlers: list[logging.Handler], level: int, propagate: bool
) -> None:
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
