"""Numbers of the host put on a device without waiting for what runs there.

From memory that the driver may move away, a copy waits until all that was launched before it has
run; from pinned memory it takes its turn. Torch keeps a pinned block until its copy is through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """`values` as a new tensor [n] on `device`."""
    on_gpu = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=on_gpu).to(device, non_blocking=on_gpu)


def put(into: Tensor, values: Sequence[int] | Sequence[float]) -> None:
    """Write `values` to the front of `into` [N], which has room for them."""
    if values:
        on_gpu = into.is_cuda
        given = torch.tensor(values, dtype=into.dtype, pin_memory=on_gpu)
        into[: len(values)].copy_(given, non_blocking=on_gpu)
