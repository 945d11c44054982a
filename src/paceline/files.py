"""Files as users give them: read in one place with one message, and written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from paceline.errors import ConfigError


def read_text(path: str | Path, advice: str = "", *, encoding: str = "utf-8") -> str:
    """The text of a file. advice: what to give instead. Raises ConfigError where it cannot be read,
    or is no UTF-8 text."""
    try:
        return Path(path).read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        then = f"; {advice}" if advice else ""
        raise ConfigError(f"{path}: cannot be read ({reason}){then}") from error


def write_whole(path: Path, text: str) -> None:
    """Write `text` whole or not at all: whoever reads `path` meanwhile finds what was there, or all
    of this. Raises OSError."""
    # A name of its own: other threads and processes may write the same file at this moment.
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
