"""Device memory for keys and values. Who owns which page is not decided here.

One pool per model; target and drafter use the same addresses (`page · page_size + offset`).
Page 0 is scratch: nodes that are not valid write there, and nobody reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.types import KVSpec


class KVPool:
    """One model's cache: `layers[i]` is [2·Hkv, pages·page_size, D], keys first."""

    def __init__(self, spec: KVSpec, pages: int, page_size: int, device: torch.device) -> None:
        self.spec, self.page_size = spec, page_size
        shape = (2 * spec.kv_heads, pages * page_size, spec.head_dim)
        # Zeros, not empty: masked columns are multiplied by 0, and 0 · NaN would be NaN.
        self.layers: tuple[Tensor, ...] = tuple(
            torch.zeros(shape, dtype=spec.dtype, device=device) for _ in range(spec.layers)
        )

    def clear(self, page: int) -> None:
        """Zero one page, so that what is not finite in it cannot reach the page's next owner."""
        first = page * self.page_size
        for layer in self.layers:
            layer[:, first : first + self.page_size].zero_()


def kv_bytes(spec: KVSpec, positions: int) -> int:
    """Bytes that `positions` positions take in a pool."""
    item = torch.empty((), dtype=spec.dtype).element_size()
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * positions * item
