"""The table [server] of a configuration file, and what the command line says over it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline import ConfigError
from paceline.errors import did_you_mean
from paceline.server.settings import ServerSettings, read_keys
from paceline.server.template import read_template

# What may stand in the table, with the types that a TOML value may have.
_KEYS: dict[str, tuple[type, ...]] = {
    "host": (str,),
    "port": (int,),
    "name": (str, list),
    "api_keys": (str,),
    "cors": (str, list),
    "max_body": (int,),
    "queue": (int,),
    "max_priority": (int,),
    "timeout": (int, float),
    "drain": (int, float),
    "ping": (int, float),
    "metrics_prefix": (str,),
    "log_format": (str,),
    "tool_parser": (str,),
    "chat_template": (str,),
    "chat_template_kwargs": (dict,),
    "reasoning": (bool,),
    "reasoning_field": (str,),
    "sampling": (str,),
    "long_answers": (str,),
    "page": (bool,),
    "record": (str,),
    "record_limit": (int,),
}
_FILES = {"api_keys", "chat_template", "record"}  # names of files
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
HOST, _PORT = "127.0.0.1", 8000


def read_table(path: Path | None) -> dict[str, Any]:
    """The table [server] of the file; nothing where there is none. Raises ConfigError for a key
    that is unknown or of the wrong type. The file's other keys are the engine's."""
    if path is None:
        return {}
    table = tomllib.loads(path.read_text(encoding="utf-8")).get("server", {})
    for name, value in table.items():
        if name not in _KEYS:
            raise ConfigError(f"{path}: unknown server option {name!r}{did_you_mean(name, _KEYS)}")
        listed = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        kinds = _KEYS[name]
        other = isinstance(value, bool) and bool not in kinds  # which Python takes for an int
        if other or not isinstance(value, kinds) or listed:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{path}: server.{name} must be of type {wanted}, not {value!r}")
    return dict(table)


def settle(
    path: Path | None, given: Mapping[str, Any], target: str
) -> tuple[ServerSettings, str, int]:
    """The settings, the host and the port. given: what the command line says, which wins over the
    file; None or an empty list where it says nothing, chat_template_kwargs as JSON. target: names
    the model where nobody else does.
    Raises ConfigError. Relative files in the table lie beside the file.
    """
    said = {name: value for name, value in given.items() if value not in (None, [])}
    if "chat_template_kwargs" in said:
        said["chat_template_kwargs"] = _variables(said["chat_template_kwargs"])
    chosen = read_table(path)
    if path is not None:
        chosen |= {name: path.parent / chosen[name] for name in _FILES & chosen.keys()}
    chosen |= said
    host, port = chosen.pop("host", HOST), chosen.pop("port", _PORT)
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must lie from 0 to 65535, not {port}")
    names = _texts(chosen.pop("name", None)) or model_names(target)
    keys = read_keys(chosen.pop("api_keys", None))
    cors = _texts(chosen.pop("cors", None))
    if "chat_template" in chosen:
        chosen["chat_template"] = read_template(chosen["chat_template"])
    settings = ServerSettings(name=names[0], aliases=names[1:], api_keys=keys, cors=cors, **chosen)
    return settings, host, port


def model_names(target: str) -> tuple[str, ...]:
    """What a model is called: its folder's or repository's own name, and a hub id as a whole, as
    clients of other servers send it. A path is not shown: it would tell of the machine."""
    name = Path(target).name
    return (name, target) if _HUB_ID.fullmatch(target) else (name,)


def _variables(text: str) -> dict[str, object]:
    """Variables of a chat template as the command line has them. Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(
            "chat_template_kwargs must be a JSON object, for instance "
            f"'{{\"enable_thinking\": false}}', not {text!r}"
        )
    return value


def _texts(value: str | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
