"""Sizes of blocks: what a Triton kernel's ranges have to be."""

from __future__ import annotations


def power_of_two(n: int) -> int:
    """The least power of two that is at least n; n is at least 1."""
    return 1 << (n - 1).bit_length()
