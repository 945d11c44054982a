"""Drafters by name: the built-in ones, those that third parties register, and any class.

A drafter is named by `name` or `name:key=value,key=value`; names joined with `+` make a `mix`
that takes, row by row, the first that has a draft. Each drafter's options are a frozen dataclass
in its own file; third parties register a `Drafter` subclass under the entry-point group
`paceline.drafters`. A name with a dot in it, `package.module.Class`, is a class that is imported
as it stands, from the current folder too.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

from paceline.drafters.base import Drafter, Draw, NoOptions, TargetInfo
from paceline.drafters.options import read_options
from paceline.errors import ConfigError, did_you_mean

__all__ = ["Drafter", "Draw", "TargetInfo", "create", "create_for", "names"]

_BUILT_IN = {
    "none": "paceline.drafters.none.NoDrafter",
    "model": "paceline.drafters.model.ModelDrafter",
    "ngram": "paceline.drafters.ngram.NgramDrafter",
    "predicted": "paceline.drafters.predicted.PredictedDrafter",
    "replay": "paceline.drafters.replay.ReplayDrafter",
}


def names() -> tuple[str, ...]:
    """The names that `create` knows, classes with a dot in theirs aside."""
    return tuple(sorted({*_BUILT_IN, *(e.name for e in entry_points(group="paceline.drafters"))}))


def create(spec: str, **defaults: str) -> Drafter:
    """Make the drafter that `spec` names (see the module's text).

    defaults: option values used where the drafter has that option and `spec` does not set it
    (the command's `--draft` gives `path` this way). Raises ConfigError.
    """
    parts = [part.strip() for part in spec.split("+")]
    made = [_create_one(part, defaults) for part in parts]
    if len(made) == 1:
        return made[0]
    from paceline.drafters.mix import MixDrafter

    return MixDrafter(tuple(made))


def create_for(spec: str, draft: str | None, dtype: str) -> Drafter:
    """`create` with what an engine's options say of the draft model, where they name one."""
    return create(spec) if draft is None else create(spec, path=draft, dtype=dtype)


def _create_one(part: str, defaults: dict[str, str]) -> Drafter:
    name, _, text = part.partition(":")
    cls = _load(name)
    options = read_options(name, cls.Options, text, defaults)
    # A drafter without options of its own need not have a constructor, and the base has none.
    made: Drafter = cls() if cls.Options is NoOptions else cls(options)  # type: ignore[call-arg]
    return made


def _load(name: str) -> type[Drafter]:
    """The class of that name, which is checked to be a whole drafter."""
    if name in _BUILT_IN:
        return _checked(name, _named(_BUILT_IN[name]))
    for entry in entry_points(group="paceline.drafters"):
        if entry.name == name:
            return _checked(name, _imported(name, entry.load))
    if "." not in name:
        raise ConfigError(f"unknown drafter {name!r}{did_you_mean(name, names())}")
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)  # last, so that no file in it hides a library
    importlib.invalidate_caches()  # the file may have been written just now
    return _checked(name, _imported(name, lambda: _named(name)))


def _named(path: str) -> object:
    """What `package.module.Class` is. Raises ConfigError where the module has no such name."""
    module, _, attribute = path.rpartition(".")
    loaded = importlib.import_module(module)
    if not hasattr(loaded, attribute):
        classes = [key for key, value in vars(loaded).items() if inspect.isclass(value)]
        hint = did_you_mean(attribute, classes)
        raise ConfigError(f"drafter {path!r}: the module {module} has no {attribute!r}{hint}")
    found: object = getattr(loaded, attribute)
    return found


def _imported(name: str, load: Callable[[], object]) -> object:
    """What `load` gives. What a plugin raises when it is imported may be anything."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"drafter {name!r} cannot be imported ({type(error).__name__}: {error}): it must lie "
            "in the current folder or be installed beside paceline, with all that it imports"
        ) from error


def _checked(name: str, found: object) -> type[Drafter]:
    if not (inspect.isclass(found) and issubclass(found, Drafter)):
        raise ConfigError(f"drafter {name!r} is not a class derived from paceline.Drafter")
    cls: type[Drafter] = found
    if inspect.isabstract(cls):
        raise ConfigError(f"drafter {name!r}: its class {cls.__name__} has no method propose")
    if not hasattr(cls, "name"):
        raise ConfigError(
            f'drafter {name!r}: its class {cls.__name__} has no name: write name = "…" in it'
        )
    return cls
