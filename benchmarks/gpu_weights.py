"""Ordinary random weights put into models that are open, and the same ones into transformers'.

The tensors a decoder reads are found by walking from its layers, and written in place, so recorded
rounds read the new values. Norms keep what the checkpoint gave them. A weight that is held as
another copy stays old, and the comparison of logits shows it.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder
from paceline.models.loading import resolve

STD = 0.02


def tensors(root: Any) -> list[Tensor]:
    """Every tensor that can be reached from `root` through the package's objects."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found[id(item)] = item
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, MethodType):
            waiting.append(item.__self__)
        elif isinstance(item, FunctionType):
            waiting += [cell.cell_contents for cell in item.__closure__ or ()]
        elif type(item).__module__.startswith("paceline"):
            waiting += getattr(item, "__dict__", {}).values()
            names = [n for c in type(item).__mro__ for n in getattr(c, "__slots__", ())]
            waiting += [getattr(item, name) for name in names if hasattr(item, name)]
    return list(found.values())


def _one(root: Any, shape: tuple[int, ...], what: str) -> Tensor:
    found = {t.data_ptr(): t for t in tensors(root) if tuple(t.shape) == shape}
    if len(found) != 1:
        raise RuntimeError(f"{what}: {len(found)} tensors of shape {shape} instead of one")
    return next(iter(found.values()))


def matrices(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's own matrices by name: embedding, head, and `number.qkv` and so on."""
    config = decoder.config
    d, ff, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {
        "_qkv": (query + 2 * key, d), "_o": (d, query), "_gate_up": (2 * ff, d), "_down": (d, ff),
    }  # fmt: skip
    found = {"embedding": decoder.embedding, "head": _one(decoder._head, (vocab, d), "head")}
    for number, layer in enumerate(decoder._layers):
        for name, shape in shapes.items():
            what = f"{number}.{name[1:]}"
            found[what] = _one(getattr(layer, name), shape, what)
    return found


@torch.inference_mode()
def randomize(decoder: Decoder, seed: int) -> int:
    """Draw every matrix anew, normal with STD. Returns how many parameters that were."""
    generator = torch.Generator(decoder.embedding.device).manual_seed(seed)
    count = 0
    for matrix in matrices(decoder).values():
        matrix.normal_(0.0, STD, generator=generator)
        count += matrix.numel()
    return count


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Rotary pairs as checkpoints have them: two halves a head instead of one behind another."""
    size = rows.shape[0] // heads
    return rows.view(heads, size // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


@torch.no_grad()
def transformers_model(source: str, decoder: Decoder) -> nn.Module:
    """transformers' model of the checkpoint `source`, with the decoder's matrices."""
    path, config = resolve(source), decoder.config
    own, kind = matrices(decoder), decoder.embedding.dtype
    with torch.device(decoder.embedding.device):
        model: nn.Module = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(path), dtype=kind, attn_implementation="sdpa"
        )
    filled = _expected(own, config)
    gains: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as reader:
            names = [n for n in reader.keys() if "norm" in n]  # noqa: SIM118
            gains |= {name: reader.get_tensor(name) for name in names}
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        parameter.copy_(filled[name] if name in filled else gains[name])
    return model.eval()


def _expected(own: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    result = {"model.embed_tokens.weight": own["embedding"], "lm_head.weight": own["head"]}
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    for number in range(config.layers):
        base = f"model.layers.{number}"
        q, k, v = own[f"{number}.qkv"].split([query, key, key])
        gate, up = own[f"{number}.gate_up"].chunk(2)
        result |= {
            f"{base}.self_attn.q_proj.weight": _halves(q, config.heads),
            f"{base}.self_attn.k_proj.weight": _halves(k, config.kv_heads),
            f"{base}.self_attn.v_proj.weight": v,
            f"{base}.self_attn.o_proj.weight": own[f"{number}.o"],
            f"{base}.mlp.gate_proj.weight": gate,
            f"{base}.mlp.up_proj.weight": up,
            f"{base}.mlp.down_proj.weight": own[f"{number}.down"],
        }
    return result
