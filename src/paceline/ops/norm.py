"""Root-mean-square normalisation (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Residual(NamedTuple):
    """The residual stream hidden [R, d] and, where kernels want it, what the next norm reads.

    scaled [R, d] = hidden · the norm's gain; squares [R, T] float32: the sum of squares of each
    row, in parts. Whoever wrote the stream left them, so the norm needs no pass of its own.
    chunk: it is a long piece of a prompt, which the vendor's kernels may have.
    """

    hidden: Tensor
    scaled: Tensor | None = None
    squares: Tensor | None = None
    chunk: bool = False


class RMSNorm:
    """y = x / sqrt(mean(x²) + eps) · g over the last dimension, computed in at least float32.

    Written as x / hypot(‖x‖, sqrt(d·eps)) · (g·sqrt(d)), the same number in half as many torch
    calls, which is what a window of a few rows costs on a CPU.
    """

    def __init__(self, gain: Tensor, eps: float) -> None:
        """gain [d] in the model's dtype."""
        size = gain.shape[0]
        self._accumulate = torch.promote_types(gain.dtype, torch.float32)
        self._gain = gain.to(self._accumulate) * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps), dtype=self._accumulate).to(gain.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., d] in x's dtype."""
        wide = x.to(self._accumulate)
        length = torch.linalg.vector_norm(wide, 2, -1, True).hypot_(self._floor)
        return torch.div(wide, length).mul_(self._gain).to(x.dtype)
