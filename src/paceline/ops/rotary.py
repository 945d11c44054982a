"""Rotary position embedding (Su et al. 2021, equation 34) as one complex product.

Heads are stored interleaved (pairs 0,1 2,3 …; `models.loading` permutes the weights), so that a
pair is a complex number and a rotation is a multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(heads: Tensor, turn: Tensor) -> None:
    """Turn `heads` in place. heads [R, H, D] float32 or float64, its last dimension contiguous;
    turn [R, 1, D/2] complex."""
    rows, count, size = heads.shape
    torch.view_as_complex(heads.view(rows, count, size // 2, 2)).mul_(turn)
