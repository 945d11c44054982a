"""Muon for the matrices, AdamW for embeddings and norms, one linear schedule for both.

Muon: momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz steps (Jordan 2024),
scaled by sqrt(max(1, rows / columns)). Matrices of one shape are handled as one batch. Owns the
optimizer state and the pace of a run; knows nothing about the loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(x: Tensor) -> Tensor:
    """Newton-Schulz iteration in bfloat16 over [N, rows, columns]."""
    x = x.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """One step over all parameters of a model at a common share of the peak learning rates."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        matrix_lr: float,
        other_lr: float,
        decay: float,
    ) -> None:
        parameters = dict(named)
        matrices = [p for n, p in parameters.items() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in parameters.items() if p.ndim != 2 or "embed" in n]
        self.matrix_lr, self.other_lr, self.decay = matrix_lr, other_lr, decay
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for p in matrices:
            self.groups.setdefault(p.shape, []).append(p)
        self.momenta = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self.groups.items()
        }
        self.adam = torch.optim.AdamW(
            others,
            lr=other_lr,
            betas=(0.9, 0.95),
            eps=1e-10,
            weight_decay=0.0,
            fused=others[0].is_cuda,
        )

    @torch.no_grad()
    def step(self, share: float, momentum: float = 0.95) -> None:
        """Update at `share` of the peak rates and clear the gradients."""
        rate = share * self.matrix_lr
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer = self.momenta[shape]
            buffer.lerp_(gradient, 1 - momentum)
            update = orthogonalise(gradient.lerp_(buffer, momentum)).float()
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            weights: list[Tensor] = list(group)
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, list(update.unbind()), alpha=-rate * scale)
            for p in group:
                p.grad = None
        for group_ in self.adam.param_groups:
            group_["lr"] = share * self.other_lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class Pace:
    """The number of steps, fixed by the speed of the first PROBE so that a run ends on time."""

    PROBE = 40

    def __init__(self, deadline: float, steps: int | None = None, warmup: int = 100) -> None:
        self.deadline, self.given, self.warmup = deadline, steps, warmup
        self.steps = steps or 5000
        self.began = time.monotonic()

    def share(self, step: int) -> float:
        """Of the peak learning rates: linear up over the warm-up, then linear down to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))

    def more(self, step: int, loss: Tensor) -> bool:
        """Whether to go on after `step` steps; waits for the device at both ends of the probe."""
        if step == self.PROBE // 2:
            loss.item()
            self.began = time.monotonic()
        elif step == self.PROBE:
            value, now = loss.item(), time.monotonic()
            pace = (now - self.began) / (self.PROBE - self.PROBE // 2)
            self.steps = self.given or step + max(0, int(0.985 * (self.deadline - now) / pace))
            print(f"loss {value:.3f}, {pace * 1e3:.1f} ms a step, {self.steps} steps", flush=True)
        elif step % 100 == 0 and time.monotonic() > self.deadline + 10:
            print("out of time before the last step", flush=True)
            return False
        return step < self.steps
