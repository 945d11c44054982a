"""Rotary frequencies (Su et al. 2021, section 3.2.2) and the table of rotations made from them.

Pure. Follows transformers' modeling_rope_utils step by step, in the same precision, because at
position 100 000 one unit in the last place of a float32 frequency is a hundredth of a radian.
The pair order (interleaved) is not known here: entry i is frequency i in either order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paceline.models.config import ModelConfig, RopeConfig


def frequencies(
    rope: RopeConfig, head_dim: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, float]:
    """Return the inverse frequencies [head_dim/2] in `dtype`, and the factor on cos and sin.

    The arithmetic is done in `dtype`; float32 gives transformers' values to the bit.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=dtype) / head_dim  # [D/2]
    inverse = 1.0 / rope.theta**exponents
    match rope.kind:
        case "default":
            return inverse, 1.0
        case "linear":
            return inverse / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, inverse), 1.0
        case "yarn":
            return _yarn(rope, head_dim, rope.theta**exponents), _yarn_attention(rope)


def table(config: ModelConfig, length: int, dtype: torch.dtype) -> Tensor:
    """Rotations of positions 0 … length-1: (cos + i·sin)·attention factor, [length, D/2].

    complex128, with float64 angles, for dtype float64; complex64, with transformers' float32
    angles, for any other.
    """
    real = torch.float64 if dtype is torch.float64 else torch.float32
    inverse, factor = frequencies(config.rope, config.head_dim, real)
    angles = torch.arange(length, dtype=real)[:, None] * inverse  # [length, D/2]
    return torch.complex(angles.cos() * factor, angles.sin() * factor)


def _llama3(rope: RopeConfig, inverse: Tensor) -> Tensor:
    """Long wavelengths divided by the factor, short ones kept, a ramp between (Llama 3.1)."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / inverse
    scaled = torch.where(wavelength > rope.original_length / low, inverse / rope.factor, inverse)
    smooth = (rope.original_length / wavelength - low) / (high - low)
    ramp = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = (wavelength >= rope.original_length / high) & (
        wavelength <= rope.original_length / low
    )
    return torch.where(between, ramp, scaled)


def _yarn(rope: RopeConfig, head_dim: int, periods: Tensor) -> Tensor:
    """NTK-by-parts (Peng et al. 2023, arXiv 2309.00071, equations 17 to 20). periods [D/2]."""

    def dimension(rotations: float) -> float:
        """The dimension that turns `rotations` times over the original context."""
        turns = math.log(rope.original_length / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(head_dim // 2, dtype=periods.dtype) - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)  # [D/2], 1 where the frequency stays
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_attention(rope: RopeConfig) -> float:
    """The factor on cos and sin that stands for YaRN's attention temperature (equation 22)."""

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
