"""The one native decoder: Llama, Mistral, Qwen2 and Qwen3 dense models over a paged cache.

Owns weights and the order of a forward pass. Knows nothing of requests, slots or sampling, and
does not know whether it serves as target or as draft.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.kv.pools import KVPool, LayerCache
from paceline.models.config import ModelConfig
from paceline.models.loading import LayerWeights, Weights
from paceline.models.rope import table
from paceline.ops.activation import silu_mul
from paceline.ops.attention import AttentionPlan, Planner, attend, write_kv
from paceline.ops.linear import make_linear, packs
from paceline.ops.norm import RMSNorm
from paceline.ops.rotary import rotate
from paceline.types import KVSpec, Window


def kv_spec(config: ModelConfig, dtype: torch.dtype) -> KVSpec:
    """The cache that a model of this shape keeps."""
    return KVSpec(config.layers, config.kv_heads, config.head_dim, dtype)


class Decoder:
    """A decoder-only language model. `forward` gives hidden states, `head` logits."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        max_length: int,
        steady: bool = True,
    ) -> None:
        """max_length: positions to serve. steady: see `ops.linear.make_linear`; False is for
        drafts, which then compute and cache in float32 at least."""
        self.config = config
        self.embedding = weights.embedding  # [V, d]
        dtype = self.embedding.dtype
        self._compute = torch.promote_types(dtype, torch.float32)
        steady = steady or not packs(dtype, self.embedding.device)
        self._stream = dtype if steady else self._compute
        self.spec = kv_spec(config, self._stream)
        self._layers = [
            _Layer(config, layer, sliding, steady)
            for layer, sliding in zip(weights.layers, config.windows, strict=True)
        ]
        self._final_norm = RMSNorm(weights.final_norm, config.rms_norm_eps)
        self._head = make_linear(weights.head, steady=steady)
        device = self.embedding.device
        self._turns = table(config, max_length, self._compute).to(device)  # [L, D/2]
        self._planner = Planner(
            self.spec, config.heads, frozenset(config.windows), max_length, self._stream, device
        )

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """d."""
        return self.config.hidden_size

    def forward(
        self, window: Window, pool: KVPool, features: tuple[int, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run `window` through all layers, writing its keys and values into `pool`.

        Returns the last hidden states before the final norm [B·W, d], and for each layer number
        in `features` (0 is the embedding, i the output of layer i) the states [B, W, d].
        """
        batch, width = window.ids.shape
        plan = self._planner.plan(window)
        turn = self._turns.index_select(0, window.position.reshape(-1)).unsqueeze(1)  # [R, 1, D/2]
        x = F.embedding(window.ids.reshape(-1), self.embedding).to(self._stream)  # [R, d]
        kept = {0: x} if 0 in features else {}
        for number, (layer, cache) in enumerate(zip(self._layers, pool.layers, strict=True), 1):
            x = layer.forward(x, turn, cache, plan)
            if number in features:
                kept[number] = x
        return x, tuple(kept[i].view(batch, width, -1) for i in features)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [R, d] from `forward`; returns logits [R, V] in float32 (float64 for float64)."""
        return self._head(self._final_norm(hidden)).to(self._compute)


class _Layer:
    """One block: attention and MLP, each with its norm and residual."""

    def __init__(
        self, config: ModelConfig, weights: LayerWeights, sliding: int | None, steady: bool
    ) -> None:
        self._heads, self._kv_heads = config.heads, config.kv_heads
        self._size = config.head_dim
        self._compute = torch.promote_types(weights.qkv.dtype, torch.float32)
        eps = config.rms_norm_eps
        self._attention_norm = RMSNorm(weights.attention_norm, eps)
        self._qkv = make_linear(weights.qkv, weights.qkv_bias, steady)
        self._q_norm = None if weights.q_norm is None else RMSNorm(weights.q_norm, eps)
        self._k_norm = None if weights.k_norm is None else RMSNorm(weights.k_norm, eps)
        self._o = make_linear(weights.o, weights.o_bias, steady)
        self._mlp_norm = RMSNorm(weights.mlp_norm, eps)
        self._gate_up = make_linear(weights.gate_up, weights.gate_up_bias, steady)
        self._down = make_linear(weights.down, weights.down_bias, steady)
        self._sliding = sliding

    def forward(self, x: Tensor, turn: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        """x [R, d] -> [R, d]; writes this layer's keys and values."""
        heads, turned = self._heads, self._heads + self._kv_heads
        qkv = self._qkv(self._attention_norm(x)).to(self._compute)
        qkv = qkv.view(x.shape[0], -1, self._size)  # [R, Hq+2Hkv, D]
        if self._q_norm is not None and self._k_norm is not None:
            qkv[:, :heads] = self._q_norm(qkv[:, :heads])
            qkv[:, heads:turned] = self._k_norm(qkv[:, heads:turned])
        rotate(qkv[:, :turned], turn)
        write_kv(*cache, qkv[:, heads:], plan.address)
        x = self._o.add(attend(qkv[:, :heads], *cache, plan, self._sliding), x)
        return self._down.add(silu_mul(self._gate_up(self._mlp_norm(x))), x)
