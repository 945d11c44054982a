"""What a checkpoint's config.json says, as one frozen value that the decoder is built from.

Reads the files of transformers 4 and 5 and decides as transformers 5 decides: defaults of keys
that are absent, which layers have a sliding window, which rotary scaling. What the decoder
cannot run is refused here, before any weight is read. Knows nothing of tensors in files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch

from paceline.errors import CheckpointError
from paceline.models.fields import Fields

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

# What transformers 5 takes for a key that config.json leaves out. None: as many as heads.
_KV_HEADS = {"llama": None, "mistral": 8, "qwen2": 32, "qwen3": 32}
_BOS = {"llama": 1, "mistral": 1}
_EOS = {"llama": 2, "mistral": 2}
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: base `theta` and a scaling, with the scaling's parameters.

    factor: how much longer the context became (all but default). original_length: the context
    before that (llama3, yarn). low_freq_factor, high_freq_factor: llama3. The rest: yarn;
    attention_factor None is derived from `factor` and the mscales.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one dense decoder. windows: per layer the number of positions it
    sees, its own among them, or None for all. max_length is max_position_embeddings. dtype is
    the checkpoint's own."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    rms_norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: torch.dtype

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Read config.json and, where there is one, generation_config.json.

        Raises CheckpointError for a folder or file that is not there or not JSON, and for
        whatever this decoder does not run.
        """
        if not path.is_dir():
            raise CheckpointError(f"no such folder: {path}; give a model folder or a hub id")
        fields = Fields.read(path / "config.json")
        architecture = _architecture(fields)
        attention_bias = fields.flag("attention_bias", False)
        has_bias_key = architecture in ("llama", "qwen3")
        heads = fields.size("num_attention_heads")
        hidden = fields.size("hidden_size")
        layers = fields.size("num_hidden_layers")
        max_length = fields.size("max_position_embeddings")
        kv_heads = fields.optional_size("num_key_value_heads", _KV_HEADS[architecture]) or heads
        if heads % kv_heads:
            raise fields.error(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}",
                "correct the file",
            )
        return cls(
            architecture=architecture,
            hidden_size=hidden,
            intermediate_size=fields.size("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=_head_dim(fields, architecture, hidden, heads),
            vocab_size=fields.size("vocab_size"),
            max_length=max_length,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=architecture == "qwen2" or (has_bias_key and attention_bias),
            o_bias=has_bias_key and attention_bias,
            mlp_bias=architecture == "llama" and fields.flag("mlp_bias", False),
            qk_norm=architecture == "qwen3",
            rope=_rope(fields, max_length),
            windows=_windows(fields, architecture, layers),
            eos_token_ids=_eos(fields, path, architecture),
            bos_token_id=fields.optional_id("bos_token_id", _BOS.get(architecture)),
            dtype=_dtype(fields),
        )

    def parameters(self) -> int:
        """The number of weights; tied embeddings count once."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (2 * query + 2 * key) * self.hidden_size
        attention += self.qkv_bias * (query + 2 * key) + self.o_bias * self.hidden_size
        attention += self.qk_norm * 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        ends = (2 - self.tie_embeddings) * self.vocab_size * self.hidden_size + self.hidden_size
        return self.layers * (attention + mlp + 2 * self.hidden_size) + ends

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights held in `dtype`."""
        return self.parameters() * dtype.itemsize


def _architecture(fields: Fields) -> Architecture:
    """The family, after refusing what only looks like one of the four."""
    if fields.has("quantization_config"):
        raise fields.error(
            "the weights are quantised", "use the bfloat16 or float32 version of this model"
        )
    name = fields.text("model_type", "") or fields.first_text("architectures")
    if "moe" in name.lower() or name == "mixtral" or any(map(fields.has, _EXPERT_KEYS)):
        raise fields.error(f"{name} is a mixture of experts", "use a dense model")
    heads = fields.texts("architectures")
    for known in get_args(Architecture):
        architecture: Architecture = known
        if name in (known, f"{known.capitalize()}ForCausalLM"):
            if heads and not any(head.endswith(("ForCausalLM", "Model")) for head in heads):
                raise fields.error(f"{heads[0]} is no language model", "use the ForCausalLM model")
            act = fields.text("hidden_act", "silu")
            if act not in ("silu", "swish"):
                raise fields.error(f"activation {act!r} is not supported", "use a model with silu")
            return architecture
    if not name:
        raise fields.error("model_type is missing", "is this a language model's config.json?")
    known_names = ", ".join(get_args(Architecture))
    raise fields.error(f"architecture {name!r} is not supported", f"use one of: {known_names}")


def _head_dim(fields: Fields, architecture: Architecture, hidden: int, heads: int) -> int:
    size = fields.optional_size("head_dim", 128 if architecture == "qwen3" else None)
    if size is None:
        if hidden % heads:
            raise fields.error(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}",
                "correct the file or add head_dim",
            )
        size = hidden // heads
    if size % 2:
        raise fields.error(f"head_dim {size} is odd and cannot be rotated", "correct the file")
    return size


def _windows(fields: Fields, architecture: Architecture, layers: int) -> tuple[int | None, ...]:
    """Per layer the sliding window, or None: transformers' configuration_{mistral,qwen2,qwen3}."""
    if architecture == "llama":
        return (None,) * layers
    window = fields.optional_size("sliding_window", 4096)
    if architecture == "mistral":
        return (window,) * layers
    if not fields.flag("use_sliding_window", False):
        window = None
    if not fields.has("layer_types"):
        first = fields.count("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(layers))
    kinds = fields.texts("layer_types")
    if len(kinds) != layers:
        raise fields.error(f"layer_types names {len(kinds)} of {layers} layers", "correct the file")
    for kind in kinds:
        if kind not in ("full_attention", "attention", "sliding_attention"):
            raise fields.error(f"layer type {kind!r} is not supported", "use another model")
        if kind == "sliding_attention" and window is None:
            raise fields.error(
                "layer_types has sliding_attention but no window is on",
                "set use_sliding_window and sliding_window",
            )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(fields: Fields, max_length: int) -> RopeConfig:
    """Rotary parameters from rope_scaling (transformers 4) or rope_parameters (5)."""
    rope = fields.inner("rope_scaling", "rope_parameters")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise fields.error("partial_rotary_factor is not supported", "use another model")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", rope.number("factor"))
    # A length at the top level wins, as in transformers' standardize_rope_params.
    original = fields.optional_size("original_max_position_embeddings", None)
    original = original or rope.optional_size("original_max_position_embeddings", None)
    original = original or max_length
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            rope.number("factor"),
            original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    if kind == "yarn":
        return RopeConfig(
            theta,
            "yarn",
            rope.optional_number("factor") or max_length / original,
            original,
            attention_factor=rope.optional_number("attention_factor"),
            beta_fast=rope.optional_number("beta_fast") or 32.0,
            beta_slow=rope.optional_number("beta_slow") or 1.0,
            mscale=rope.optional_number("mscale"),
            mscale_all_dim=rope.optional_number("mscale_all_dim"),
            truncate=rope.flag("truncate", True),
        )
    raise fields.error(
        f"rotary scaling {kind!r} is not supported",
        f"use a model with one of: {', '.join(get_args(RopeKind))}",
    )


def _eos(fields: Fields, path: Path, architecture: Architecture) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's, as in transformers, or config.json's."""
    generation = path / "generation_config.json"
    if generation.is_file():
        ids = Fields.read(generation).ids("eos_token_id", None)
        if ids:
            return ids
    return fields.ids("eos_token_id", _EOS.get(architecture))


def _dtype(fields: Fields) -> torch.dtype:
    name = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in _DTYPES:
        raise fields.error(f"dtype {name!r} is not supported", f"use one of: {', '.join(_DTYPES)}")
    return _DTYPES[name]
