"""A small Llama in plain torch, for training and for large-batch generation.

Owns the forward pass, the cached decode and the translation to and from Hugging Face tensor names.
Weights are float32 masters; products run in bfloat16 unless a caller asks for float32. Knows
nothing about data, losses or optimizers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EPS = 1e-5
THETA = 10000.0
HALF = torch.bfloat16
SHARD_BYTES = 15_500_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 64
    vocab: int = 8192
    positions: int = 2048


TARGET = Shape(hidden=320, layers=15, heads=6, kv_heads=2, intermediate=832)
DRAFTS = {
    "a": Shape(hidden=192, layers=2, heads=3, kv_heads=1, intermediate=512),
    "b": Shape(hidden=256, layers=1, heads=4, kv_heads=1, intermediate=640),
    "c": Shape(hidden=128, layers=2, heads=2, kv_heads=1, intermediate=384),
    "d": Shape(hidden=192, layers=3, heads=3, kv_heads=1, intermediate=512),
}
GROWN = {"d": "a"}  # candidates that can start from a trained shallower one
TINY = Shape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, head_dim=32)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Normalise in float32, scale in the input's dtype."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, EPS).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-rotated as in Llama; x is [B, H, T, D]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Block(nn.Module):
    """Attention and MLP with fused input projections."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, spread = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        out_std = 0.02 / math.sqrt(2 * shape.layers)
        self.qkv = nn.Parameter(torch.randn(width + 2 * spread, shape.hidden) * 0.02)
        self.out = nn.Parameter(torch.randn(shape.hidden, width) * out_std)
        self.gate_up = nn.Parameter(torch.randn(2 * shape.intermediate, shape.hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(shape.hidden, shape.intermediate) * out_std)
        self.norm_attention = nn.Parameter(torch.ones(shape.hidden))
        self.norm_mlp = nn.Parameter(torch.ones(shape.hidden))

    def heads_of(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D], rotated keys and values [B, KV, T, D]."""
        shape = self.shape
        qkv = F.linear(rms_norm(x, self.norm_attention), self.qkv.to(x.dtype))
        qkv = qkv.view(*x.shape[:2], -1, shape.head_dim).transpose(1, 2)
        q, k, v = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP; attended is [B, T, H * D]."""
        x = x + F.linear(attended, self.out.to(x.dtype))
        gate, up = F.linear(rms_norm(x, self.norm_mlp), self.gate_up.to(x.dtype)).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down.to(x.dtype))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Tensor | None) -> Tensor:
        """Causal over [B, T]; fills cache [2, B, KV, L, D] from position 0 if there is one."""
        q, k, v = self.heads_of(x, cos, sin)
        if cache is not None:
            cache[0, :, :, : k.shape[2]] = k
            cache[1, :, :, : v.shape[2]] = v
        group = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.finish(x, attended.transpose(1, 2).flatten(2))

    def step(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Tensor,
        position: int,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One token a row into cache slot `position`; mask [B, 1, 1, position + 1] hides slots."""
        q, k, v = self.heads_of(x, cos, sin)
        cache[0, :, :, position : position + 1] = k
        cache[1, :, :, position : position + 1] = v
        keys, values = cache[0, :, :, : position + 1], cache[1, :, :, : position + 1]
        q = q.view(q.shape[0], self.shape.kv_heads, -1, q.shape[-1])  # [B, KV, H / KV, D]
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.finish(x, attended.reshape(x.shape[0], 1, -1))


class Llama(nn.Module):
    """Decoder with tied embeddings; `forward` gives hidden states, `logits` the head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dtype: torch.dtype = HALF) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.03)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        inverse = THETA ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.positions).float(), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    def forward(self, ids: Tensor, cache: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, hidden] after the final norm; ids [B, T] int64."""
        x = F.embedding(ids, self.embed).to(self.dtype)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if cache is None else cache[i])
        return rms_norm(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in the dtype of `hidden`."""
        return F.linear(hidden, self.embed.to(hidden.dtype))

    def new_cache(self, rows: int, length: int) -> Tensor:
        """Empty key-value cache [layers, 2, rows, KV, length, D]."""
        shape = self.shape
        size = (shape.layers, 2, rows, shape.kv_heads, length, shape.head_dim)
        return torch.empty(size, dtype=self.dtype, device=self.embed.device)

    def step(self, ids: Tensor, cache: Tensor, position: int) -> Tensor:
        """Logits [B, V] after one more token a row; ids [B]."""
        x = F.embedding(ids[:, None], self.embed).to(self.dtype)
        cos, sin = self.cos[position : position + 1], self.sin[position : position + 1]
        for i, block in enumerate(self.blocks):
            x = block.step(x, cos, sin, cache[i], position)  # type: ignore[operator]
        return self.logits(rms_norm(x, self.norm))[:, 0]


def gumbel(rows: int, vocab: int, seed: int, position: int, device: torch.device) -> Tensor:
    """Gumbel noise [rows, V], a function of seed and position alone."""
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + position)
    uniform = torch.rand(rows, vocab, generator=generator, device=device)
    return -torch.log(-torch.log(uniform.clamp_(1e-12, 1 - 6e-8)))


def choose(logits: Tensor, temperature: Tensor, seed: int, position: int) -> Tensor:
    """argmax(logprob + T * noise) per row: greedy where T is 0, a sample at T elsewhere."""
    noise = gumbel(logits.shape[0], logits.shape[1], seed, position, logits.device)
    return (logits.float() + temperature[:, None] * noise).argmax(-1)


@torch.no_grad()
def generate(model: Llama, prompts: Tensor, new: int, temperature: Tensor, seed: int) -> Tensor:
    """Continue prompts [B, P] by `new` tokens; temperature [B]; returns [B, P + new]."""
    rows, length = prompts.shape
    cache = model.new_cache(rows, length + new)
    ids = torch.cat((prompts, prompts.new_zeros(rows, new)), dim=1)
    logits = model.logits(model(prompts, cache)[:, -1])
    for position in range(length, length + new):
        ids[:, position] = choose(logits, temperature, seed, position)
        if position + 1 < length + new:
            logits = model.step(ids[:, position], cache, position)
    return ids


def to_hf(model: Llama) -> dict[str, Tensor]:
    """bfloat16 tensors under the names transformers gives a tied Llama."""
    shape = model.shape
    width, spread = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embed,
        "model.norm.weight": model.norm,
    }
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = block.qkv.split((width, spread, spread))
        gate, up = block.gate_up.chunk(2)
        at = f"model.layers.{i}."
        tensors |= {
            at + "self_attn.q_proj.weight": q,
            at + "self_attn.k_proj.weight": k,
            at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": block.out,
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": block.down,
            at + "input_layernorm.weight": block.norm_attention,
            at + "post_attention_layernorm.weight": block.norm_mlp,
        }
    return {name: t.detach().to(HALF).cpu().contiguous() for name, t in tensors.items()}


@torch.no_grad()
def from_hf(model: Llama, tensors: dict[str, Tensor]) -> None:
    """Copy tensors under Hugging Face names into `model`."""
    model.embed.copy_(tensors["model.embed_tokens.weight"])
    model.norm.copy_(tensors["model.norm.weight"])
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        at = f"model.layers.{i}."
        qkv = [tensors[f"{at}self_attn.{name}_proj.weight"] for name in "qkv"]
        block.qkv.copy_(torch.cat(qkv))
        block.out.copy_(tensors[at + "self_attn.o_proj.weight"])
        pair = [tensors[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        block.gate_up.copy_(torch.cat(pair))
        block.down.copy_(tensors[at + "mlp.down_proj.weight"])
        block.norm_attention.copy_(tensors[at + "input_layernorm.weight"])
        block.norm_mlp.copy_(tensors[at + "post_attention_layernorm.weight"])


@torch.no_grad()
def grow(small: Llama, shape: Shape) -> Llama:
    """A deeper model that computes what `small` computes: its new layers add nothing yet."""
    model = Llama(shape)
    model.embed.copy_(small.embed)
    model.norm.copy_(small.norm)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if i < len(small.blocks):
            block.load_state_dict(small.blocks[i].state_dict())
        else:
            block.out.zero_()
            block.down.zero_()
    return model


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write safetensors shards under SHARD_BYTES each, and the index when there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= size
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", {"format": "pt"})
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def load(folder: Path, shape: Shape, dtype: torch.dtype = HALF) -> Llama:
    """Read the shards `save` wrote; `dtype` is that of the products."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no model*.safetensors: train the model first")
    model = Llama(shape, dtype)
    from_hf(model, {name: t for file in files for name, t in load_file(file).items()})
    return model
