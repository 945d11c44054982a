"""Shapes of calibrated pairs: published configurations as data, or any config.json.

Owns what a shape is made of and the table of its tensors. Knows nothing of laws or values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from paceline.errors import ConfigError, did_you_mean
from paceline.files import read_text

Kind = Literal["embedding", "head", "gain", "final_gain", "inner", "bias", "write"]

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
}
_MINI: dict[str, Any] = {
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA
    | _sizes(2048, 8192, 16, 32)
    | {"head_dim": 64, "rope_scaling": _LLAMA3 | {"factor": 32.0}},
    "llama-3.2-3b": _LLAMA
    | _sizes(3072, 8192, 28, 24)
    | {"head_dim": 128, "rope_scaling": _LLAMA3 | {"factor": 32.0}},
    "llama-3.1-8b": _LLAMA
    | _sizes(4096, 14336, 32, 32)
    | {"head_dim": 128, "rope_scaling": _LLAMA3 | {"factor": 8.0}},
    "qwen3-0.6b": _QWEN3 | _sizes(1024, 3072, 28, 16) | {"max_window_layers": 28},
    "qwen3-14b": _QWEN3 | _sizes(5120, 17408, 40, 40) | {"max_window_layers": 40},
    "mini-target": _MINI
    | _sizes(320, 832, 15, 6)
    | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "mini-draft": _MINI
    | _sizes(192, 512, 3, 3)
    | {"model_type": "llama", "num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False},
}
"""Configurations as published, by name, less what every calibrated checkpoint sets itself."""

_FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What a config.json may say of weights, files and tokens that are not ours.
_DROPPED = (
    "quantization_config", "compression_config", "auto_map", "dtype", "torch_dtype",
    "_name_or_path", "transformers_version", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id", "unk_token_id", "architectures",
)  # fmt: skip
# Sizes that transformers fills in when a file leaves them out: the head count, or a number.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One stored tensor. fan_in: the length of the rows that a product sums over."""

    name: str
    size: tuple[int, ...]
    kind: Kind

    @property
    def elements(self) -> int:
        return prod(self.size)

    @property
    def fan_in(self) -> int:
        return self.size[-1]


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder's sizes. config: its config.json, less the special ids and
    what is stated of the pair, which `pair` adds."""

    name: str
    config: dict[str, Any]
    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def tensors(self) -> list[TensorSpec]:
        """Return every tensor in the order it is stored. The head is untied."""
        d, ends = self.hidden, (self.vocab, self.hidden)
        table = [TensorSpec("model.embed_tokens.weight", ends, "embedding")]
        for layer in range(self.layers):
            table += self._layer(f"model.layers.{layer}")
        table.append(TensorSpec("model.norm.weight", (d,), "final_gain"))
        table.append(TensorSpec("lm_head.weight", ends, "head"))
        return table

    def _layer(self, base: str) -> list[TensorSpec]:
        d, ff = self.hidden, self.intermediate
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biased = bool(self.config.get("attention_bias")) and self.family in ("llama", "qwen3")
        qkv_bias = biased or self.family == "qwen2"
        mlp_bias = bool(self.config.get("mlp_bias")) and self.family == "llama"
        products: list[tuple[str, int, int, Kind, bool]] = [
            ("self_attn.q_proj", query, d, "inner", qkv_bias),
            ("self_attn.k_proj", key, d, "inner", qkv_bias),
            ("self_attn.v_proj", key, d, "inner", qkv_bias),
            ("self_attn.o_proj", d, query, "write", biased),
            ("mlp.gate_proj", ff, d, "inner", mlp_bias),
            ("mlp.up_proj", ff, d, "inner", mlp_bias),
            ("mlp.down_proj", d, ff, "write", mlp_bias),
        ]
        table = [
            TensorSpec(f"{base}.input_layernorm.weight", (d,), "gain"),
            TensorSpec(f"{base}.post_attention_layernorm.weight", (d,), "gain"),
        ]
        if self.family == "qwen3":
            for name in ("q_norm", "k_norm"):
                table.append(
                    TensorSpec(f"{base}.self_attn.{name}.weight", (self.head_dim,), "gain")
                )
        for name, rows, columns, kind, bias in products:
            table.append(TensorSpec(f"{base}.{name}.weight", (rows, columns), kind))
            if bias:
                table.append(
                    TensorSpec(f"{base}.{name}.bias", (rows,), kind if kind == "write" else "bias")
                )
        return table

    def weight_bytes(self) -> int:
        """Bytes of all tensors in bfloat16."""
        return 2 * sum(tensor.elements for tensor in self.tensors())

    def with_vocab(self, vocab: int) -> Shape:
        """Return this shape with another vocabulary size."""
        return _shape(self.name, self.config | {"vocab_size": vocab})


def find_shape(name: str) -> Shape:
    """Return the shape called `name`, or the one in a config.json (its path, or its folder's).

    Raises ConfigError for an unknown name, a file that is none, or a model of another family.
    """
    if name in SHAPES:
        return _shape(name, SHAPES[name])
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"no shape and no config.json is called {name!r}{did_you_mean(name, SHAPES)}"
        )
    try:
        config = json.loads(read_text(file, "give a model's config.json"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}); give a model's config.json") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no JSON object; give a model's config.json")
    # The folder's name says more than "config.json", and no path of this machine is written.
    return _shape(file.resolve().parent.name if file.name == "config.json" else file.stem, config)


def _shape(name: str, given: dict[str, Any]) -> Shape:
    family = given.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ConfigError(
            f"shape {name}: model_type {family!r} is not supported; use one of: "
            f"{', '.join(_FAMILIES)}"
        )

    def size(key: str, default: int | None = None) -> int:
        value = given.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"shape {name}: {key} must be a whole number above 0, not {value!r}; correct its "
                "config.json"
            )
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    kv_heads = size("num_key_value_heads", _KV_HEADS.get(family, heads))
    head_dim = size("head_dim", 128 if family == "qwen3" else hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise ConfigError(
            f"shape {name}: {heads} heads cannot share {kv_heads} key heads, or head_dim "
            f"{head_dim} is odd; correct its config.json"
        )
    config = {key: value for key, value in given.items() if key not in _DROPPED}
    config |= {"num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_act": "silu"}
    config |= {"architectures": [_FAMILIES[family]], "tie_word_embeddings": False}
    # Says that the tokenizer needs none of the mending that transformers offers older files.
    config["transformers_version"] = "5.0.0"
    config |= {"torch_dtype": "bfloat16"}
    config.setdefault("max_position_embeddings", 2048)
    return Shape(
        name=name,
        config=config,
        family=family,
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=size("vocab_size"),
    )
