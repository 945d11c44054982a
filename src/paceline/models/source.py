"""From the name of a model to a folder on this machine: a path, a bundled model, or a hub id.

A model of the hub comes in two steps: first what says what it is (configuration, tokenizer), then
its weights, once that has been read and found to be runnable. An opening finds each name once and
hands on what it found; both steps are of one commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from paceline.errors import CheckpointError, did_you_mean
from paceline.models.checkpoint import INDEX, SINGLE, foreign, shards
from paceline.models.config import ModelConfig

BUNDLED = ("mini-draft", "mini-target")
_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*", "openvino/*"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was found. name: what it was asked for by; folder: holds its configuration and
    tokenizer, and its weights where `repository` is None; else those are that hub repository's, at
    `commit`."""

    name: str
    folder: Path
    repository: str | None = None
    commit: str | None = None

    def with_weights(self) -> Path:
        """The folder, with the weights in it: downloads those of the hub that are not here yet.
        Raises CheckpointError."""
        if self.repository is None:
            return self.folder
        wanted = self._weights()
        folder = _snapshot(self.name, self.repository, self.commit, wanted)
        if wanted == [SINGLE] and not (folder / SINGLE).is_file():
            raise CheckpointError(f"{self.name} " + self._instead(SINGLE))
        return folder

    def has_weights(self) -> bool:
        """Whether nothing is left to be downloaded. Raises CheckpointError."""
        return self.repository is None or all((self.folder / f).is_file() for f in self._weights())

    def _weights(self) -> list[str]:
        return shards(self.folder) if (self.folder / INDEX).is_file() else [SINGLE]

    def _instead(self, missing: str) -> str:
        """What is wrong with a repository that lacks a file, by what it has instead."""
        import huggingface_hub

        assert self.repository is not None
        with _asking(self.name):
            names = huggingface_hub.list_repo_files(self.repository, revision=self.commit)
        return foreign(names) or f"has no {missing}; give the hub id of a language model"


def find(source: str | Path) -> Source:
    """Return the model that `source` names, downloading all but its weights if need be.

    source: a folder; "mini-target" or "mini-draft"; or a hub id such as "Qwen/Qwen3-0.6B", with a
    branch, tag or commit as in "Qwen/Qwen3-0.6B@main". Raises CheckpointError when there is no such
    model, the hub cannot be reached, or what is there is no model in safetensors.
    """
    if source in BUNDLED:
        return Source(str(source), _bundled(str(source)))
    path = Path(source).expanduser()
    if path.is_dir() and str(source):  # The empty name is no wish for this folder.
        if not (path / "config.json").is_file():
            reason = foreign(entry.name for entry in path.iterdir())
            if reason is not None:
                raise CheckpointError(f"{source} {reason}")
        return Source(str(source), path)
    if path.is_file():
        reason = foreign([path.name]) or "is a file; give the folder that holds config.json"
        raise CheckpointError(f"{source} {reason}")
    name = str(source)
    hub = _HUB_ID.fullmatch(name)
    if isinstance(source, Path) or hub is None or path.parent.is_dir():
        choices = f"give a model folder, a hub id or one of {', '.join(BUNDLED)}"
        near = did_you_mean(name, BUNDLED)
        guess = near.startswith("; did") and "/" not in name
        raise CheckpointError(f"no such folder: {name}" + (near if guess else f"; {choices}"))
    folder = _snapshot(name, hub["repository"], hub["revision"], _SMALL)
    # The cache names a snapshot's folder by its commit.
    found = Source(name, folder, hub["repository"], folder.name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} " + found._instead("config.json"))
    return found


def resolve(source: str | Path) -> Path:
    """Return the folder of the model that `source` names (as in `find`), with its weights. Those of
    the hub are downloaded once it is known that this decoder runs them. Raises CheckpointError."""
    found = find(source)
    if found.repository is not None:
        ModelConfig.from_folder(found.folder)
    return found.with_weights()


def _bundled(name: str) -> Path:
    folder = Path(str(files("paceline"))) / "assets" / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the bundled model {name} is not in this installation ({folder}); install paceline "
            "again or give a model folder"
        )
    return folder


def _snapshot(name: str, repository: str, revision: str | None, wanted: Iterable[str]) -> Path:
    """The folder of a repository's files that match `wanted`, at `revision`."""
    import huggingface_hub

    with _asking(name):
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=_UNWANTED,
        )
    return Path(folder)


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """What the hub's client raises meanwhile, as this package's error."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        remedy = "accept its terms on huggingface.co and run 'hf auth login'"
        raise CheckpointError(f"{name} is gated; {remedy}") from None
    except RepositoryNotFoundError:
        remedy = "check the spelling, or run 'hf auth login' if it is private"
        raise CheckpointError(f"the hub has no model {name}; {remedy}") from None
    except RevisionNotFoundError:
        remedy = "give a branch, a tag or a commit that it has"
        raise CheckpointError(f"the hub has no such revision: {name}; {remedy}") from None
    except Exception as error:  # Which HTTP client raises what differs between hub versions.
        remedy = "check the network, or give a folder that holds the model"
        raise CheckpointError(
            f"no such folder: {name}, and the hub gave none ({type(error).__name__}); {remedy}"
        ) from error
