"""The gated activation of the Llama-family MLP (Shazeer 2020, SwiGLU)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [R, 2·ff], gate first. Returns silu(gate) · up, [R, ff] contiguous."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)
