"""The page at `/`: its files as they lie in the package, and the headers that hold it in.

Every file is read once. Nothing is made on the fly and nothing comes from another host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from paceline.server.errors import ApiError

FOLDER = "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles are files of this server, and no text that comes to the page can be one.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked again every time, and answered by 304
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    kind: str
    tag: str


class Page:
    """Serves `/` and `/page/NAME`."""

    def __init__(self) -> None:
        self._files = _read()

    async def root(self, request: Request) -> Response:
        return self._answer(request, "index.html")

    async def file(self, request: Request) -> Response:
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise ApiError(404, f"the page has no file {name[:100]!r}", code="unknown_url")
        headers = {**_HEADERS, "etag": found.tag}
        given = request.headers.get("if-none-match", "")
        if found.tag in (tag.strip().removeprefix("W/") for tag in given.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(found.body, headers={**headers, "content-type": found.kind})


def _read() -> Mapping[str, _File]:
    folder = files("paceline.server") / FOLDER
    found: dict[str, _File] = {}
    for entry in folder.iterdir():
        kind = _TYPES.get(PurePosixPath(entry.name).suffix)
        if kind is not None:
            body = entry.read_bytes()
            found[entry.name] = _File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    assert "index.html" in found
    return found
