"""Rotary tables: to the bit with transformers in float32, and with plain arithmetic in float64."""

from __future__ import annotations

import cmath
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paceline.models.config import ModelConfig
from paceline.models.rope import frequencies, table

LENGTH = 131_072
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "theta": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    | {"original_max_position_embeddings": 8192},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    | {"original_max_position_embeddings": 32768},
    "yarn-whole": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "truncate": False}
    | {"original_max_position_embeddings": 65536},
    "yarn-options": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 0.9}
    | {
        "mscale_all_dim": 0.4,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn-factor": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    | {
        "attention_factor": 1.25,
        "original_max_position_embeddings": 32768,
    },
    "yarn-null": {"rope_type": "yarn", "rope_theta": 1e4, "factor": None}
    | {"original_max_position_embeddings": 16384},
}


def both(
    rope: dict[str, Any], head_dim: int, tmp_path: Any
) -> tuple[ModelConfig, LlamaRotaryEmbedding]:
    theirs = LlamaConfig(
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=head_dim,
        vocab_size=32,
        max_position_embeddings=LENGTH,
        rope_parameters=dict(rope),
    )
    theirs.save_pretrained(tmp_path)
    return ModelConfig.from_folder(tmp_path), LlamaRotaryEmbedding(theirs)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_float32_equals_transformers(name: str, head_dim: int, tmp_path: Any) -> None:
    config, module = both(ROPES[name], head_dim, tmp_path)
    inverse, factor = frequencies(config.rope, config.head_dim, torch.float32)
    assert torch.equal(inverse, module.inv_freq)
    assert factor == module.attention_scaling

    positions = torch.tensor([[0, 1, 2, 63, 4097, 32768, LENGTH - 1]])
    cos, sin = module(torch.zeros(1), positions)  # [1, 7, D]
    turns = table(config, LENGTH, torch.float32)
    assert turns.dtype is torch.complex64
    assert turns.shape == (LENGTH, head_dim // 2)
    rows = turns[positions[0]]
    torch.testing.assert_close(rows.real, cos[0, :, : head_dim // 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.imag, sin[0, :, : head_dim // 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ROPES)
def test_float64_is_exact(name: str, tmp_path: Any) -> None:
    config, module = both(ROPES[name], 64, tmp_path)
    inverse, factor = frequencies(config.rope, 64)
    assert inverse.dtype is torch.float64
    torch.testing.assert_close(inverse, module.inv_freq.double(), rtol=1e-5, atol=0)
    if config.rope.kind == "default":
        expected = [config.rope.theta ** (-2 * i / 64) for i in range(32)]
        assert inverse.tolist() == pytest.approx(expected, rel=1e-14)
    turns = table(config, 5000, torch.float64)
    assert turns.dtype is torch.complex128
    for position, index in ((0, 0), (1, 31), (4999, 0), (4999, 7)):
        expected_turn = factor * cmath.exp(1j * position * float(inverse[index]))
        assert complex(turns[position, index]) == pytest.approx(expected_turn, abs=1e-12)


def test_half_precision_gets_the_float32_table(tmp_path: Any) -> None:
    config, _ = both(ROPES["yarn"], 64, tmp_path)
    assert torch.equal(table(config, 99, torch.bfloat16), table(config, 99, torch.float32))
