"""Device memory for keys and values. Who owns which page is not decided here.

One pool per model; target and drafter use the same addresses (`page · page_size + offset`).
Page 0 is scratch: nodes that are not valid write there, and nobody reads it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paceline.types import KVSpec


class LayerCache(NamedTuple):
    """One layer's keys and values, each [Hkv / bundle, pages · page_size, bundle · D].

    A bundle of heads at one position is one row, so that a page's extent of it is a dense
    matrix, which oneDNN multiplies without a copy.
    """

    keys: Tensor
    values: Tensor


class KVPool:
    """One model's cache."""

    def __init__(self, spec: KVSpec, pages: int, page_size: int, device: torch.device) -> None:
        self.spec, self.page_size = spec, page_size
        bundle = spec.bundle
        shape = (spec.kv_heads // bundle, pages * page_size, bundle * spec.head_dim)

        # Zeros, not empty: values that nobody sees are multiplied by 0, and 0 · NaN would be NaN.
        # From then on `write_kv` writes finite values only, and tells the rest by the key.
        def empty() -> Tensor:
            return torch.zeros(shape, dtype=spec.dtype, device=device)

        self.layers = tuple(LayerCache(empty(), empty()) for _ in range(spec.layers))


def kv_bytes(spec: KVSpec, positions: int) -> int:
    """Bytes that `positions` positions take in a pool."""
    item = torch.empty((), dtype=spec.dtype).element_size()
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * positions * item
