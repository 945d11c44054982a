"""What a run was asked to do, kept in its folder: so that it can be resumed, and only as itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from paceline import ConfigError
from paceline.files import write_whole
from paceline.lab.bench_json import Malformed, build, plain
from paceline.lab.bench_record import MANIFEST, SCHEMA, Contestant, Load


@dataclass(frozen=True, slots=True)
class Manifest:
    """settings, workload, versions, machine: in words, by name. texts: of the workload, so that a
    run asks for texts x contestants x loads x repeats. chats: whether messages were sent as such;
    None until the contestants have been asked."""

    settings: dict[str, str]
    workload: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, str]
    contestants: tuple[Contestant, ...]
    loads: tuple[Load, ...]
    repeats: int
    texts: int
    skipped: tuple[str, ...] = ()
    chats: bool | None = None

    @property
    def planned(self) -> int:
        """Texts that the whole run asks for."""
        return self.texts * len(self.contestants) * len(self.loads) * self.repeats


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it whole or not at all."""
    value = {"schema": SCHEMA} | plain(manifest)
    write_whole(folder / MANIFEST, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's. Raises ConfigError."""
    file = folder / MANIFEST
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise Malformed(f"not of schema {SCHEMA}")
        return build(Manifest, value)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no run of paceline bench is there ({MANIFEST} is missing)"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None


def claim(folder: Path, wanted: Manifest) -> Manifest:
    """The manifest of a run in `folder`: `wanted`, or what is there, where that is the same run.

    Raises ConfigError where the folder holds another run, or something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made ({error.strerror})") from None
    if not (folder / MANIFEST).exists():
        if any(folder.iterdir()):
            raise ConfigError(f"--out {folder}: holds files that are no bench run; take another")
        write_manifest(folder, wanted)
        return wanted
    there = read_manifest(folder)
    if differing := _difference(there, wanted):
        raise ConfigError(
            f"--out {folder} holds a run with other settings ({differing}); repeat its settings to "
            "resume it, or take another folder"
        )
    return there


def _difference(there: Manifest, wanted: Manifest) -> str | None:
    """The first thing in which two runs differ, in words."""
    for name in ("settings", "workload", "versions", "machine"):
        old, new = getattr(there, name), getattr(wanted, name)
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return f"{key} {old.get(key, 'not given')}, and now {new.get(key, 'not given')}"
    was, now = there.contestants, wanted.contestants
    if names := {c.name for c in was} ^ {c.name for c in now}:
        return f"contestants differ in {', '.join(sorted(names))}"
    for before in was:
        after = next(c for c in now if c.name == before.name)
        if before != after:
            return f"contestant {before.name} was opened with other settings"
    if [load.name for load in there.loads] != [load.name for load in wanted.loads]:
        return f"loads {', '.join(load.name for load in there.loads)}"
    if there.repeats != wanted.repeats:
        return f"{there.repeats} repeats"
    return None


def decided(folder: Path, manifest: Manifest, chats: bool) -> Manifest:
    """Keep whether messages are sent as such."""
    manifest = replace(manifest, chats=chats)
    write_manifest(folder, manifest)
    return manifest
