"""Weights against transformers' own tensors, and every checkpoint that is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VARIANTS, tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.errors import CheckpointError, ConfigError
from paceline.models import loading, memory, streaming
from paceline.models.config import ModelConfig
from paceline.models.loading import Weights, check, load

CPU = torch.device("cpu")


def read(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, Weights]:
    config = ModelConfig.from_folder(folder)
    check(folder, config)
    weights = load(folder, config, dtype, CPU)
    return config, replace(weights, layers=tuple(weights.layers))


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Row by row: head h's row 2i is the checkpoint's i, its row 2i+1 the checkpoint's D/2+i."""
    order = []
    for first in range(0, rows.shape[0], head_dim):
        for i in range(head_dim // 2):
            order += [first + i, first + head_dim // 2 + i]
    return rows[order]


def expected_layer(attention: Any, mlp: Any, head_dim: int) -> dict[str, Tensor | None]:
    def merged(name: str) -> Tensor | None:
        q, k, v = (getattr(attention, f"{n}_proj") for n in "qkv")
        if getattr(q, name) is None:
            return None
        q, k = (interleaved(getattr(p, name), head_dim) for p in (q, k))
        return torch.cat([q, k, getattr(v, name)])

    def gates(name: str) -> Tensor | None:
        gate, up = getattr(mlp.gate_proj, name), getattr(mlp.up_proj, name)
        return None if gate is None else torch.cat([gate, up])

    norms = {
        name: interleaved(getattr(attention, name).weight, head_dim)
        if hasattr(attention, name)
        else None
        for name in ("q_norm", "k_norm")
    }
    return norms | {
        "qkv": merged("weight"),
        "qkv_bias": merged("bias"),
        "o": attention.o_proj.weight,
        "o_bias": attention.o_proj.bias,
        "gate_up": gates("weight"),
        "gate_up_bias": gates("bias"),
        "down": mlp.down_proj.weight,
        "down_bias": mlp.down_proj.bias,
    }


@pytest.mark.parametrize("slices", [16 * 2**20, 100])
@pytest.mark.parametrize("shards", ["5GB", "10KB"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_in_its_place(
    variant: str, shards: str, slices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_COPY_ELEMENTS", slices)
    monkeypatch.setattr(streaming, "_BLOCK", slices // 3)  # read by several threads
    family, overrides = VARIANTS[variant]
    tiny_checkpoint(tmp_path, family, max_shard_size=shards, tokenizer=False, **overrides)
    assert (tmp_path / "model.safetensors").exists() == (shards == "5GB")
    theirs = tiny_model(family, **overrides)
    config, weights = read(tmp_path)

    assert torch.equal(weights.embedding, theirs.model.embed_tokens.weight)
    assert torch.equal(weights.final_norm, theirs.model.norm.weight)
    assert torch.equal(weights.head, theirs.lm_head.weight)
    assert (weights.head is weights.embedding) == config.tie_embeddings
    assert len(weights.layers) == 2
    for mine, layer in zip(weights.layers, theirs.model.layers, strict=True):
        expected = expected_layer(layer.self_attn, layer.mlp, config.head_dim)
        expected["attention_norm"] = layer.input_layernorm.weight
        expected["mlp_norm"] = layer.post_attention_layernorm.weight
        for field, value in expected.items():
            found = getattr(mine, field)
            assert (found is None) == (value is None), field
            if value is not None:
                assert torch.equal(found, value), field
                assert found.is_contiguous()


def test_products_of_queries_and_keys_do_not_change(tmp_path: Path) -> None:
    _, weights = read(tiny_checkpoint(tmp_path, "llama", tokenizer=False))
    attention = tiny_model("llama").model.layers[0].self_attn
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    mine = (x @ weights.layers[0].qkv.T).view(3, 8, 8)
    q, k = attention.q_proj(x).view(3, 4, 8), attention.k_proj(x).view(3, 2, 8)
    torch.testing.assert_close(
        mine[:, :4].transpose(0, 1) @ mine[:, 4:6].repeat_interleave(2, 1).permute(1, 2, 0),
        q.transpose(0, 1) @ k.repeat_interleave(2, 1).permute(1, 2, 0),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtypes(stored: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama", dtype=stored, tokenizer=False)
    config, weights = read(tmp_path, dtype)
    assert config.dtype is stored
    expected = tiny_model("llama", dtype=stored).model.layers[1].mlp.down_proj.weight.to(dtype)
    assert weights.layers[1].down.dtype is dtype
    assert torch.equal(weights.layers[1].down, expected)


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_checkpoint_saved_without_its_head(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen2", tie_word_embeddings=True, tokenizer=False)
    _, before = read(tmp_path)

    def strip(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit(tmp_path, strip)
    _, after = read(tmp_path)
    assert torch.equal(before.layers[1].qkv, after.layers[1].qkv)


def test_tied_head_that_is_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_checkpoint(tmp_path, "llama", tie_word_embeddings=True, tokenizer=False)

    def copy(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit(tmp_path, copy)
    _, weights = read(tmp_path)
    assert weights.head is weights.embedding
    assert not caplog.records

    edit(tmp_path, lambda tensors: tensors["lm_head.weight"].mul_(2))
    _, weights = read(tmp_path)
    assert torch.equal(weights.head, 2 * weights.embedding)
    assert "not tied" in caplog.text


def test_unexpected_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_checkpoint(tmp_path, "llama", tokenizer=False)

    def computed(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit(tmp_path, computed)
    read(tmp_path)
    assert not caplog.records
    edit(tmp_path, lambda tensors: tensors.update({"model.vision.weight": torch.ones(4)}))
    with caplog.at_level(logging.WARNING):
        read(tmp_path)
    assert "1 tensors are not used, the first is model.vision.weight" in caplog.text


# --- refusals --------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    config = ModelConfig.from_folder(folder)
    with pytest.raises(CheckpointError) as caught:
        check(folder, config)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message
    return message


def test_truncated_shard(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, max_shard_size="20KB", tokenizer=False)
    shard = sorted(tmp_path.glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    message = refusal(tmp_path)
    assert message.startswith(str(shard))
    assert f"truncated: {len(whole) - 1} of {len(whole)} bytes; download" in message
    for size in (100, 8, 5, 0):
        shard.write_bytes(whole[:size])
        assert "truncated within its header" in refusal(tmp_path)
    shard.write_bytes(whole + b"\0")
    assert "is damaged" in refusal(tmp_path)
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "Git LFS pointer; run 'git lfs pull'" in refusal(tmp_path)
    shard.write_bytes((5).to_bytes(8, "little") + b"12345")
    assert "no safetensors file" in refusal(tmp_path)
    shard.write_bytes((2).to_bytes(8, "little") + b"{!")
    assert "no safetensors file" in refusal(tmp_path)


def test_a_shard_that_shrinks_after_it_was_checked(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, tokenizer=False)
    file = tmp_path / "model.safetensors"
    config = ModelConfig.from_folder(tmp_path)
    check(tmp_path, config)
    weights = load(tmp_path, config, torch.float32, CPU)
    layers = iter(weights.layers)
    next(layers)
    file.write_bytes(file.read_bytes()[:-9000])
    with pytest.raises(CheckpointError, match="is truncated; download the model again"):
        list(layers)


def test_missing_shards(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, max_shard_size="20KB", tokenizer=False)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    assert f"shard {shards[1].name} of {len(shards)} is missing" in refusal(tmp_path)
    shards[2].unlink()
    assert f"shard {shards[1].name} and 1 more of {len(shards)}" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "has shards but no model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(content: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, max_shard_size="20KB", tokenizer=False)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(tmp_path).startswith(str(index))


def test_pickled_weights(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "pickled weights only; convert them to safetensors" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "has no model.safetensors; give" in refusal(tmp_path)


def test_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, tokenizer=False)
    name = "model.layers.1.mlp.up_proj.weight"
    edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(60, 32)}))
    message = refusal(tmp_path)
    assert message.startswith(str(tmp_path / "model.safetensors"))
    assert f"tensor {name} is [60, 32], config.json says [64, 32]" in message
    edit(tmp_path, lambda tensors: tensors.pop(name))
    assert f"tensor {name} is missing" in refusal(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    assert "and 1 more is missing" in refusal(tmp_path)


def test_weights_and_config_that_do_not_belong_together(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, tokenizer=False)
    file = tmp_path / "config.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"num_hidden_layers": 4}))
    assert "model.layers.2.input_layernorm.weight and 17 more is missing" in refusal(tmp_path)
    file.write_text(json.dumps(before | {"vocab_size": 300}))
    assert "model.embed_tokens.weight is [259, 32], config.json says [300, 32]" in refusal(tmp_path)


def test_quantised_tensors(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, tokenizer=False)
    name = "model.layers.1.mlp.up_proj.weight"
    edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(64, 32, dtype=torch.int8)}))
    assert f"tensor {name} is I8; use the bfloat16 or float32 version" in refusal(tmp_path)


def test_free_memory_heeds_the_container(tmp_path: Path) -> None:
    assert memory._container_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50\nactive_file 20\n")
    assert memory._container_free(tmp_path) == 370
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_free(tmp_path) is None
    assert memory.free_bytes(CPU) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device() -> None:
    with pytest.raises(ConfigError, match="no CUDA device here; use device cpu"):
        memory.free_bytes(torch.device("cuda"))
