"""Names of models: folders, bundled ones and hub ids, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from paceline.errors import CheckpointError
from paceline.models import source
from paceline.models.loading import resolve


def refusal(name: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)
    return str(caught.value)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("a/b") == Path("a/b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a") == tmp_path / "a"
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["/no/such", "/no/draft", "./no", "no", "a/b/c", "~/no", "", Path("a/b")]
)
def test_no_such_folder(name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(name).startswith(f"no such folder: {name}; give a model folder, a hub id or")


def test_near_the_folder_or_the_bundled_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal("models/tiny").startswith("no such folder: models/tiny; give")
    assert "did you mean 'mini-target'?" in refusal("mini-targt")


def test_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "files", lambda package: tmp_path)
    assert "the bundled model mini-draft is not in this installation" in refusal("mini-draft")
    folder = tmp_path / "assets" / "mini-draft"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve("mini-draft") == folder


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("someone/model-1.5B") == tmp_path
    ((name, patterns),) = asked
    assert name == "someone/model-1.5B"
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)


def test_hub_that_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The suite is offline, so the real client fails here.
    assert "no such folder: someone/no-model, and the hub gave none" in refusal("someone/no-model")

    def fail(error: Exception) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    response: Any = type("Response", (), {"headers": {}, "request": None})()
    fail(huggingface_hub.errors.RepositoryNotFoundError("no", response=response))
    assert "the hub has no model someone/x; check the spelling" in refusal("someone/x")
    fail(huggingface_hub.errors.GatedRepoError("no", response=response))
    assert "someone/x is gated; accept its terms" in refusal("someone/x")
    fail(TimeoutError("slow\nline"))
    assert "(TimeoutError); check the network" in refusal("someone/x")
