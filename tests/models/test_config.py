"""ModelConfig against transformers' own reading of the same file, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAMILIES, VARIANTS, tiny_model
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paceline.errors import CheckpointError
from paceline.models.config import ModelConfig
from paceline.models.rope import frequencies

MINIMAL = {
    "hidden_size": 4096,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


def write(folder: Path, config: dict[str, Any], name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    model = tiny_model(family, **overrides)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    theirs = model.config
    attention = model.model.layers[0].self_attn
    assert config.architecture == family
    assert (config.hidden_size, config.intermediate_size) == (32, 64)
    assert (config.layers, config.heads) == (2, 4)
    assert config.kv_heads == theirs.num_key_value_heads
    assert config.head_dim == attention.head_dim
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.qkv_bias == (attention.q_proj.bias is not None)
    assert config.o_bias == (attention.o_proj.bias is not None)
    assert config.mlp_bias == (model.model.layers[0].mlp.up_proj.bias is not None)
    assert config.qk_norm == hasattr(attention, "q_norm")
    if family == "mistral":
        assert config.windows == (theirs.sliding_window,) * 2
    else:
        windows = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
        assert config.windows == tuple(windows)
    assert config.eos_token_ids == (257,)
    assert config.bos_token_id == 256
    assert config.parameters() == sum(weight.numel() for weight in model.parameters())
    assert config.weight_bytes(torch.bfloat16) == 2 * config.parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_take_the_defaults_of_transformers(family: str, tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | {"model_type": family})
    config, theirs = ModelConfig.from_folder(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert config.kv_heads == theirs.num_key_value_heads
    assert config.head_dim == getattr(theirs, "head_dim", 128)
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.bos_token_id == theirs.bos_token_id
    eos = () if theirs.eos_token_id is None else (theirs.eos_token_id,)
    assert config.eos_token_ids == eos
    assert config.windows == ((4096,) * 3 if family == "mistral" else (None,) * 3)
    assert config.dtype is torch.float32


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "torch_dtype": "float16",
        },
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7},
            "original_max_position_embeddings": 100,
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}, "dtype": "bfloat16"},
    ],
)
@pytest.mark.filterwarnings("default")
def test_files_of_transformers_4(keys: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | {"model_type": "llama"} | keys)
    config, theirs = ModelConfig.from_folder(tmp_path), AutoConfig.from_pretrained(tmp_path)
    rotary = LlamaRotaryEmbedding(theirs)
    inverse, factor = frequencies(config.rope, config.head_dim, torch.float32)
    assert config.rope.kind == theirs.rope_parameters["rope_type"]
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert torch.equal(inverse, rotary.inv_freq)
    assert factor == rotary.attention_scaling
    assert config.dtype == (theirs.dtype or torch.float32)


def test_windows_as_transformers_lays_them_out(tmp_path: Path) -> None:
    base = MINIMAL | {"model_type": "qwen3", "sliding_window": 9}

    def windows(**keys: Any) -> tuple[int | None, ...]:
        mine = ModelConfig.from_folder(write(tmp_path, base | keys)).windows
        theirs = AutoConfig.from_pretrained(tmp_path)
        kinds = theirs.layer_types
        assert mine == tuple(
            theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds
        )
        return mine

    assert windows() == (None, None, None)
    assert windows(use_sliding_window=True) == (None, None, None)
    assert windows(use_sliding_window=True, max_window_layers=1) == (None, 9, 9)
    assert windows(use_sliding_window=True, max_window_layers=0) == (9, 9, 9)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(use_sliding_window=True, layer_types=kinds) == (9, None, 9)
    assert windows(use_sliding_window=True, max_window_layers=0, sliding_window=None) == (None,) * 3


def test_ids_that_end_a_text(tmp_path: Path) -> None:
    base = MINIMAL | {"model_type": "llama"}

    def eos() -> tuple[int, ...]:
        return ModelConfig.from_folder(tmp_path).eos_token_ids

    write(tmp_path, base | {"eos_token_id": [7, 8]})
    assert eos() == (7, 8)
    write(tmp_path, {"eos_token_id": [9, 10]}, "generation_config.json")
    assert eos() == (9, 10)
    write(tmp_path, {"eos_token_id": 11}, "generation_config.json")
    assert eos() == (11,)
    write(tmp_path, {"temperature": 0.6}, "generation_config.json")
    assert eos() == (7, 8)
    write(tmp_path, base | {"eos_token_id": None})
    assert eos() == ()


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "gpt2"}, "'gpt2' is not supported; use one of: llama"),
    "nameless": ({"model_type": None}, "model_type is missing"),
    "classifier": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "LlamaForSequenceClassification is no language model",
    ),
    "experts": ({"model_type": "qwen3_moe"}, "mixture of experts; use a dense model"),
    "expert-key": ({"num_local_experts": 8}, "mixture of experts"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised; use the bfloat16 or float32"),
    "activation": ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
    "missing": ({"hidden_size": None}, "hidden_size is missing"),
    "text-size": ({"vocab_size": "many"}, "vocab_size is 'many', not an integer of at least 1"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not an integer"),
    "true": ({"num_attention_heads": True}, "num_attention_heads is True, not an integer"),
    "groups": ({"num_key_value_heads": 5}, "32 is not a multiple of num_key_value_heads 5"),
    "heads": ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 32"),
    "odd": ({"head_dim": 7}, "head_dim 7 is odd"),
    "rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
    "rope-factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    "rope-list": ({"rope_parameters": [1]}, "rope_parameters is [1], not an object"),
    "rope-layers": ({"rope_parameters": {"full_attention": {"factor": 1}}}, "differs by layer"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    "dtype": ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
    "eos": ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', not a token id"),
    "eps": ({"rms_norm_eps": -1}, "rms_norm_eps is -1, not a number above 0"),
    "tie": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', not true or false"),
    "layer-kinds": (
        {"model_type": "qwen2", "layer_types": ["full_attention"]},
        "layer_types names 1 of 3 layers",
    ),
    "layer-kind": (
        {"model_type": "qwen2", "layer_types": ["linear_attention"] * 3},
        "layer type 'linear_attention' is not supported",
    ),
    "no-window": (
        {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3},
        "sliding_attention but no window is on",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_is_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    keys, expected = REFUSALS[case]
    write(tmp_path, MINIMAL | {"model_type": "llama"} | keys)
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_folder(tmp_path)
    message = str(caught.value)
    assert expected in message
    assert message.startswith(str(tmp_path / "config.json"))
    assert "\n" not in message
    assert ";" in message  # what to do stands after it


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder: .*nowhere; give a model folder"):
        ModelConfig.from_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json; give a Hugging Face model"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelConfig.from_folder(tmp_path)
