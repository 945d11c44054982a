"""`paceline info`: what is here, and what a pair would be, before anything large is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Call, Pair
from helpers import tiny_checkpoint, tiny_tokenizer

from paceline import ConfigError, Engine, preview
from paceline.cli.info import gpus


def test_info_tells_of_gpus(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("info", "--json").out)
    assert {"python", "torch", "triton"} <= set(found["versions"])
    assert (found["device"], found["auto"]) == ("cpu", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr("paceline.config.choose", lambda dtype: "cuda")
    assert gpus() == [
        {"device": "cuda:0", "name": "A GPU", "memory_gb": 80.0, "memory_free_gb": 70.0,
         "capability": "9.0"}
    ]  # fmt: skip
    out = call("info").out
    assert "A GPU, 70.0 GB free of 80.0 GB, compute capability 9.0" in out
    assert "A GPU (auto is cuda)" in out
    assert "triton" in out


def test_a_pair_is_told_as_it_is_opened(call: Call, pair: Pair) -> None:
    options: dict[str, Any] = {"dtype": "float32", "max_length": 128, "slots": 3}
    words = ["info", "--target", pair.target, "--draft", pair.draft, "--dtype", "float32",
             "--max-length", "128", "--slots", "3"]  # fmt: skip
    told = json.loads(call(*words, "--json").out)
    with Engine(pair.target, draft=pair.draft, threads=1, **options) as engine:
        assert told["memory"] == engine.memory
        limits = engine.limits
        assert (told["max_length"], told["cache_tokens"]) == (128, limits.positions)
        assert (told["slots"], told["device"], told["dtype"]) == (3, "cpu", "float32")
    assert all(model["parameters"] > 0 for model in told["models"])
    assert [model["notes"] for model in told["models"]] == [[], []]
    out = call(*words).out
    for part in ("texts at once", "up to 128 positions", "draft weights", "GiB of"):
        assert part in out


def test_a_gpu_that_is_not_here(call: Call, pair: Pair) -> None:
    done = call("info", "--target", pair.target, "--gpu", "23.5", "--json")
    told = json.loads(done.out)
    assert (told["device"], told["slots"], told["memory_free"]) == ("cuda", 16, int(23.5 * 2**30))
    small = call("info", "--target", pair.target, "--gpu", "0.1")
    assert small.status == 1
    assert "cuda has 0.10 GiB free" in small.err
    assert call("info", "--target", pair.target, "--gpu", "9", "--device", "cuda").status == 2
    with pytest.raises(ConfigError, match="gpu must be a number of GiB above 0, not -1"):
        preview(pair.target, gpu=-1)


def test_what_opening_would_warn_of(call: Call, pair: Pair) -> None:
    done = call("info", "--target", pair.target)
    assert "holds float32 weights and is opened as bfloat16" in done.err
    assert done.status == 0


@pytest.mark.parametrize("fault", ["tokenizer", "tensor", "architecture", "adapter"])
def test_a_pair_that_cannot_be_opened(call: Call, pair: Pair, fault: str, tmp_path: Path) -> None:
    """The words are those of opening it."""
    other = tiny_checkpoint(tmp_path / "other")
    if fault == "tokenizer":
        tiny_tokenizer(other, swap=(65, 66))
    elif fault == "tensor":
        file = other / "config.json"
        file.write_text(
            file.read_text().replace('"intermediate_size": 64', '"intermediate_size":32')
        )
    elif fault == "architecture":
        (other / "config.json").write_text('{"model_type": "gemma3"}')
    else:
        (other / "config.json").rename(other / "adapter_config.json")
    target, draft = (pair.target, str(other)) if fault == "tokenizer" else (str(other), pair.draft)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        Engine(target, draft=draft, device="cpu", threads=1, dtype="float32")
    words = ["info", "--target", target, "--draft", draft, "--dtype", "float32"]
    done = call(*words, "--json")
    assert done.status == 1
    assert done.err == f"error: {caught.value}\n"
    assert json.loads(done.out) == {"error": str(caught.value)}
    assert call(*words).out == ""


def test_a_mix_is_checked_part_by_part(pair: Pair, tmp_path: Path) -> None:
    other = tiny_tokenizer(tiny_checkpoint(tmp_path / "other"), swap=(65, 66))
    with pytest.raises(ConfigError, match="has another tokenizer than the target"):
        preview(pair.target, draft=other, drafter="ngram+model", device="cpu")
    assert (
        preview(pair.target, draft=pair.draft, drafter="ngram+model", device="cpu").models[1].here
    )


def test_what_opening_warns_of_is_told(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here of a draft that was trained for fewer positions than the engine opens."""
    short = tiny_checkpoint(tmp_path / "short", max_position_embeddings=64)
    options: dict[str, Any] = {"draft": short, "device": "cpu", "dtype": "float32"}
    target, draft = preview(pair.target, max_length=128, **options).models
    assert target.notes == ()
    assert draft.notes == ("was trained for 64 positions and is opened for 128",)
    Engine(pair.target, max_length=128, threads=1, adaptive=False, **options).close()
    assert f"{draft.name} {draft.notes[0]}" in caplog.messages
    assert preview(pair.target, max_length=64, **options).models[1].notes == ()


def test_options_of_a_pair_need_one(call: Call) -> None:
    done = call("info", "--max-length", "5")
    assert done.status == 2
    assert "--max-length is of a pair; give --target too" in done.err
