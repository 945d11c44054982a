"""Names of models: folders, bundled ones and hub ids, without a network."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers import tiny_checkpoint

from paceline import Engine, EngineConfig, preview
from paceline.drafters import create
from paceline.engine.budget import plan_memory
from paceline.errors import CheckpointError
from paceline.models import source
from paceline.models.config import ModelConfig
from paceline.models.source import find, resolve


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


class Hub:
    """A hub that has some repositories, as far as the client's functions that are used show one. A
    snapshot lies in a folder named by its commit, as in the real cache."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.repositories = root, dict[str, Path]()
        self.downloads: list[tuple[str, str | None, list[str]]] = []
        self.listed = 0
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self._download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self._list)

    def _download(
        self, name: str, *, revision: str | None, allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:  # fmt: skip
        self.downloads.append((name, revision, allow_patterns))
        folder = self.root / "snapshots" / "0123abc"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.repositories[name].iterdir():
            wanted = any(fnmatch(file.name, pattern) for pattern in allow_patterns)
            if wanted and not (folder / file.name).exists():  # the cache writes no file twice
                shutil.copy(file, folder)
        return str(folder)

    def _list(self, name: str, *, revision: str | None) -> list[str]:
        self.listed += 1
        return [file.name for file in self.repositories[name].iterdir()]

    def add(self, name: str, *files: str) -> Path:
        """A repository of empty files."""
        self.repositories[name] = self.root / name
        self.repositories[name].mkdir(parents=True)
        for file in files:
            (self.repositories[name] / file).write_text("{}")
        return self.repositories[name]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize(("size", "shards"), [("5GB", 1), ("20KB", 3)])
def test_a_model_of_the_hub_comes_in_two_steps(hub: Hub, size: str, shards: int) -> None:
    tiny_checkpoint(hub.add("someone/model-1.5B", "pytorch_model.bin"), max_shard_size=size)
    (hub.root / "someone/model-1.5B/model.fp32.safetensors").write_text("another one")
    found = find("someone/model-1.5B@v1.0")
    assert not list(found.folder.glob("*.safetensors"))
    assert (found.folder / "tokenizer.json").is_file()
    assert found.with_weights() == found.folder == resolve("someone/model-1.5B@v1.0")
    assert len(list(found.folder.glob("*.safetensors"))) >= shards
    first, second = hub.downloads[:2]
    assert first[:2] == ("someone/model-1.5B", "v1.0")
    assert second[:2] == ("someone/model-1.5B", "0123abc")  # whatever v1.0 has become meanwhile
    assert not (found.folder / "model.fp32.safetensors").exists()
    assert not list(found.folder.glob("*.bin"))
    assert hub.listed == 0


def test_sizing_asks_the_hub_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's sizes are searched for, which asks for everybody's memory many times."""
    tiny_checkpoint(hub.add("org/target"))
    hub.repositories["org/draft"] = hub.repositories["org/target"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("paceline.engine.budget.free_bytes", lambda device: 2**29)
    drafter = create("ngram+model", path="org/draft", dtype="bfloat16")
    model = ModelConfig.from_folder(find("org/target").folder)
    plan_memory(EngineConfig(target="org/target", device="cuda"), model, drafter)
    assert [name for name, *_ in hub.downloads] == ["org/target", "org/draft"]


def test_an_opening_asks_the_hub_twice_a_model(hub: Hub) -> None:
    tiny_checkpoint(hub.add("some/target"))
    hub.repositories["some/draft"] = hub.repositories["some/target"]
    with Engine("some/target", draft="some/draft@main", device="cpu", threads=1, max_length=64):
        pass
    asked = [(name, revision) for name, revision, _ in hub.downloads]
    assert len(asked) == 4
    assert set(asked) == {
        ("some/draft", "main"), ("some/draft", "0123abc"),
        ("some/target", None), ("some/target", "0123abc"),
    }  # fmt: skip


def test_a_preview_downloads_no_weights(hub: Hub) -> None:
    tiny_checkpoint(hub.add("some/target"), dtype=torch.bfloat16)
    told = preview("some/target", device="cpu").models[0]
    assert not list(hub.root.glob("snapshots/*/*.safetensors"))
    assert not told.here
    assert told.notes == ("is checked by its configuration only: its weights are still on the hub",)
    resolve("some/target")
    told = preview("some/target", device="cpu").models[0]
    assert told.here
    assert told.notes == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]}, "'gemma3' is not supp"),
    ],
)
def test_what_is_refused_is_refused_before_its_weights_come(
    hub: Hub, change: dict[str, Any], words: str
) -> None:
    folder = tiny_checkpoint(hub.add("someone/else"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | change))
    assert words in refusal("someone/else")
    with pytest.raises(CheckpointError, match=words):
        Engine("someone/else", device="cpu")
    assert not list(hub.root.glob("snapshots/*/*.safetensors"))


KINDS = [
    (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter, not a whole model; "
     "merge it into its base model first"),
    (["model-Q4_K_M.gguf", "README.md"], "has GGUF weights only, which are not read; give the"),
    (["pytorch_model.bin", "config.json"], "has pickled weights only; convert them to safeten"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words"), KINDS)
def test_what_is_no_model_in_safetensors(
    hub: Hub, files: list[str], words: str, tmp_path: Path
) -> None:
    said = tiny_checkpoint(tmp_path / "whole") / "config.json"
    folder = hub.add("some/one", *files)
    if "config.json" in files:
        shutil.copy(said, folder)
    assert refusal("some/one").startswith(f"some/one {words}")
    with pytest.raises(CheckpointError) as caught:
        Engine(folder, device="cpu")
    assert str(caught.value).startswith(f"{folder} {words}")


def test_a_gguf_file_and_a_repository_of_neither(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("GGUF")
    assert "a.gguf has GGUF weights only" in refusal(tmp_path / "a.gguf")
    hub.add("some/texts", "README.md")
    assert refusal("some/texts").startswith("some/texts has no config.json; give the hub id")


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
    fail(huggingface_hub.errors.RevisionNotFoundError("no", response=response))
    assert "the hub has no such revision: someone/x@v9; give a br" in refusal("someone/x@v9")
    fail(huggingface_hub.errors.GatedRepoError("no", response=response))
    assert "someone/x is gated; accept its terms" in refusal("someone/x")
    fail(TimeoutError("slow\nline"))
    assert "(TimeoutError); check the network" in refusal("someone/x")
