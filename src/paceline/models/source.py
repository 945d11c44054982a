"""From the name of a model to a folder on this machine: a path, a bundled model, or a hub id."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from paceline.errors import CheckpointError, did_you_mean

BUNDLED = ("mini-draft", "mini-target")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*", "openvino/*"]


def resolve(source: str | Path) -> Path:
    """Return the folder of the model that `source` names, downloading it if need be.

    source: a folder; "mini-target" or "mini-draft"; or a hub id such as "Qwen/Qwen3-0.6B".
    Raises CheckpointError when there is no such model or the hub cannot be reached.
    """
    if source in BUNDLED:
        return _bundled(str(source))
    path = Path(source).expanduser()
    if path.is_dir() and str(source):  # The empty name is no wish for this folder.
        return path
    if path.is_file():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json")
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name) or path.parent.is_dir():
        choices = f"give a model folder, a hub id or one of {', '.join(BUNDLED)}"
        near = did_you_mean(name, BUNDLED)
        guess = near.startswith("; did") and "/" not in name
        raise CheckpointError(f"no such folder: {name}" + (near if guess else f"; {choices}"))
    return _download(name)


def _bundled(name: str) -> Path:
    folder = Path(str(files("paceline"))) / "assets" / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the bundled model {name} is not in this installation ({folder}); install paceline "
            "again or give a model folder"
        )
    return folder


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except GatedRepoError:
        remedy = "accept its terms on huggingface.co and run 'hf auth login'"
        raise CheckpointError(f"{name} is gated; {remedy}") from None
    except RepositoryNotFoundError:
        remedy = "check the spelling, or run 'hf auth login' if it is private"
        raise CheckpointError(f"the hub has no model {name}; {remedy}") from None
    except Exception as error:  # Which HTTP client raises what differs between hub versions.
        remedy = "check the network, or give a folder that holds the model"
        raise CheckpointError(
            f"no such folder: {name}, and the hub gave none ({type(error).__name__}); {remedy}"
        ) from error
    return Path(folder)
