"""The one native decoder: Llama, Mistral, Qwen2 and Qwen3 dense models over a paged cache.

Owns weights and the order of a forward pass. Knows nothing of requests, slots or sampling, and
does not know whether it serves as target or as draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from paceline.kv.pools import KVPool, LayerCache
from paceline.models.config import ModelConfig
from paceline.models.loading import LayerWeights, Weights
from paceline.models.rope import table
from paceline.ops.layer import LayerOps, make_ops
from paceline.ops.linear import kept
from paceline.ops.norm import Residual
from paceline.types import KVSpec, Window

_abridged: ContextVar[bool] = ContextVar("abridged", default=False)


@contextmanager
def abridged() -> Iterator[None]:
    """Meanwhile every forward pass of this thread goes through one layer of each kind only: enough
    to meet all its kernels, and nothing that anybody may use."""
    token = _abridged.set(True)
    try:
        yield
    finally:
        _abridged.reset(token)


def kv_spec(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, steady: bool = True
) -> KVSpec:
    """The cache that a model of this shape keeps; arguments as for `Decoder`."""
    stream, steady = _stream(dtype, device, steady)
    ops = make_ops(stream, device, steady)
    return ops.kv_spec(config.layers, config.kv_heads, config.head_dim)


def _stream(dtype: torch.dtype, device: torch.device, steady: bool) -> tuple[torch.dtype, bool]:
    """The residual stream's dtype, and whether products are steady after all."""
    # On a CPU a draft that packs computes in float32; elsewhere it has kernels of its own.
    on_cpu = device.type == "cpu"
    steady = steady or (on_cpu and kept(dtype, device) is None)
    return (torch.promote_types(dtype, torch.float32) if on_cpu and not steady else dtype), steady


class Decoder:
    """A decoder-only language model. `forward` gives hidden states, `head` logits."""

    def __init__(
        self, config: ModelConfig, weights: Weights, max_length: int, steady: bool = True
    ) -> None:
        """max_length: positions to serve. steady: see `ops.linear.make_linear`; False is for
        drafts, which then compute in float32 at least."""
        self.config = config
        self.embedding = weights.embedding  # [V, d]
        dtype, device = self.embedding.dtype, self.embedding.device
        self._compute = torch.promote_types(dtype, torch.float32)
        self._stream, steady = _stream(dtype, device, steady)
        ops = make_ops(self._stream, device, steady)
        self.spec = ops.kv_spec(config.layers, config.kv_heads, config.head_dim)
        self._layers: list[_Layer] = []
        for (layer, following), sliding in zip(
            pairwise(chain(weights.layers, (None,))), config.windows, strict=True
        ):
            assert layer is not None
            if not self._layers:
                self._enter = ops.enter(self.embedding, layer.attention_norm, self._stream)
            after = None if following is None else following.attention_norm
            self._layers.append(_Layer(config, layer, sliding, ops, self.spec, after))
        self._kinds = _one_of_each(self._layers)
        self._head = ops.normed(
            weights.final_norm, config.rms_norm_eps, weights.head, None, wide=True
        )
        turns = table(config, max_length, self._compute).to(device)  # [L, D/2]
        self._plan = ops.planner(self.spec, config.heads, frozenset(config.windows), turns)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """d."""
        return self.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states."""
        return self._stream

    @property
    def half_context(self) -> float:
        """Positions behind a token at which attention has as many operations as the products."""
        c = self.config
        inner = c.heads * c.head_dim
        products = c.hidden_size * (2 * inner + 2 * c.kv_heads * c.head_dim)
        products += 3 * c.hidden_size * c.intermediate_size
        return products / (2 * inner)

    def forward(
        self, window: Window, pool: KVPool, features: tuple[int, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run `window` through all layers, writing its keys and values into `pool`.

        Returns the last hidden states before the final norm [B·W, d], and for each layer number
        in `features` (0 is the embedding, i the output of layer i) the states [B, W, d].
        """
        batch, width = window.ids.shape
        plan = self._plan(window)
        x = self._enter(window.ids)
        kept = {0: x.hidden} if 0 in features else {}
        for number, (layer, cache) in enumerate(zip(self._layers, pool.layers, strict=True), 1):
            if not _abridged.get() or layer in self._kinds:
                x = layer.forward(x, cache, plan)
            if number in features:
                kept[number] = x.hidden
        return x.hidden, tuple(kept[i].view(batch, width, -1) for i in features)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [R, d] contiguous, from `forward`; returns logits [R, V] in float32 or float64."""
        assert hidden.is_contiguous(), "kernels read rows by their address"
        return self._head(Residual(hidden))


class _Layer:
    """One block: attention and MLP, each with its norm and residual."""

    def __init__(
        self,
        config: ModelConfig,
        weights: LayerWeights,
        sliding: int | None,
        ops: LayerOps,
        spec: KVSpec,
        following: Tensor | None,
    ) -> None:
        """following: the gain of the next layer's first norm."""
        self.kind = sliding, following is None
        eps, norms = config.rms_norm_eps, (weights.q_norm, weights.k_norm)
        self._qkv = ops.normed(weights.attention_norm, eps, weights.qkv, weights.qkv_bias)
        self._attend = ops.attention(spec, config.heads, norms, eps, sliding)
        self._o = ops.added(weights.o, weights.o_bias, weights.mlp_norm)
        self._gate_up = ops.gated(weights.mlp_norm, eps, weights.gate_up, weights.gate_up_bias)
        self._down = ops.added(weights.down, weights.down_bias, following)

    def forward(self, x: Residual, cache: LayerCache, plan: Any) -> Residual:
        """x [R, d] -> [R, d]; writes this layer's keys and values."""
        x = self._o(self._attend(self._qkv(x), cache.keys, cache.values, plan), x)
        return self._down(self._gate_up(x), x)


def _one_of_each(layers: list[_Layer]) -> tuple[_Layer, ...]:
    """The first layer of every kind; a kind is what kernels differ by."""
    return tuple({layer.kind: layer for layer in reversed(layers)}.values())
