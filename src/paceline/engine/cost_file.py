"""Measured costs on disk, so that an engine measures once for a machine and a pair of models.

A file that is broken, or of another machine, is as none. Host only: no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paceline.engine.catch_up import CatchUp
from paceline.engine.cost_grid import Point
from paceline.files import write_whole

log = logging.getLogger(__name__)

_FORMAT = 3


@dataclass(frozen=True, slots=True)
class Saved:
    """Points that were measured, and what bringing a drafter up to date takes."""

    points: tuple[Point, ...]
    catch_up: CatchUp


def cache_folder() -> Path | None:
    """Where paceline keeps what it can make again: $PACELINE_CACHE, else the user's cache. None
    where the user has no home folder, as one whom the machine does not know."""
    own = os.environ.get("PACELINE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "paceline"
    try:
        return Path.home() / ".cache" / "paceline"
    except RuntimeError:
        _tell_homeless()
        return None


@cache  # said once: a start asks twice, and closing once more
def _tell_homeless() -> None:
    log.warning(
        "costs cannot be kept, for the user has no home folder: every start measures again; set "
        "PACELINE_CACHE to a folder"
    )


def cost_path(key: Mapping[str, str], folder: Path) -> Path:
    """The file in `folder` for `key`: what costs depend on, models, device, versions and sizes."""
    text = json.dumps(dict(key), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    return folder / f"costs-{name}.json"


def load_costs(key: Mapping[str, str], folder: Path | None = None) -> Saved | None:
    """What was saved for `key`, or None."""
    folder = folder or cache_folder()
    if folder is None:
        return None
    path = cost_path(key, folder)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read (%s): costs are measured again", path, error)
        return None
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:  # what another version of paceline left
            log.info("%s is of another version: costs are measured again", path)
            return None
        return _read(content, key)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is not a table of costs (%s): they are measured again", path, error)
        return None


def save_costs(
    key: Mapping[str, str],
    points: Iterable[Point],
    catch_up: CatchUp,
    folder: Path | None = None,
) -> None:
    """Keep `points`; where that is not possible, the log says so and nothing else happens."""
    folder = folder or cache_folder()
    if folder is None:
        return
    path = cost_path(key, folder)
    rows = [[point.kind, point.rows, point.k, point.context, point.seconds] for point in points]
    content = {"format": _FORMAT, "key": dict(key), "points": rows, "catch_up": catch_up}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content))  # another engine may read it at this moment
    except OSError as error:
        log.warning("costs cannot be kept in %s (%s): the next start measures again", path, error)


def _read(content: dict[str, object], key: Mapping[str, str]) -> Saved:
    if content["key"] != dict(key):
        raise ValueError("of another machine")
    rows, catch_up = content["points"], content["catch_up"]
    if not isinstance(rows, list):
        raise ValueError("no points")
    points = tuple(_point(*row) for row in rows)
    if not any(point.kind == "verify" for point in points):
        raise ValueError("no verify window")
    if not isinstance(catch_up, list):
        raise ValueError("no pair of seconds to catch up in")
    row, token = map(_seconds, catch_up)
    return Saved(points, CatchUp(row, token))


def _point(kind: object, rows: object, k: object, context: object, seconds: object) -> Point:
    if kind != "verify" and kind != "draft":
        raise ValueError(f"unknown kind {kind!r}")
    return Point(kind, _whole(rows, 1), _whole(k, 0), _whole(context, 0), _seconds(seconds))


def _whole(value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is no count")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"{value!r} is no time")
    return float(value)
