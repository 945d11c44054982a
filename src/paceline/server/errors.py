"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with its status."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from paceline import ConfigError, EngineClosedError, PacelineError, RequestError

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """param: the field at fault. kind: OpenAI's `type`; follows from the status if None."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind = kind or (INVALID if status < 500 else SERVER)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The JSON object of the answer, and of an `error` chunk in a stream."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request cannot be served as it stands."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A 400 for a field that this server knows and does not serve."""
    return refused(message, param, "unsupported_parameter")


def busy(status: int, message: str, seconds: int, code: str) -> ApiError:
    """A 429 or 503 that says when to come again."""
    kind = "rate_limit_error" if status == 429 else SERVER
    headers = {"Retry-After": str(seconds)}
    return ApiError(status, message, kind=kind, code=code, headers=headers)


def told(error: Exception) -> ApiError:
    """What a client is told of an exception; what it may not know is in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError | ConfigError):
        return refused(str(error))
    if isinstance(error, EngineClosedError):
        return busy(503, "the server is stopping; send the request again", 5, "unavailable")
    if isinstance(error, PacelineError):
        return ApiError(500, str(error))
    return ApiError(500, "the server failed on this request; its log says why", code="internal")
