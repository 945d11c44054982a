"""The families' formats of filling in between a prompt and a suffix, as data, found by the
vocabulary: each marks what stands before, what stands behind, and where the middle begins.

Pure. That a vocabulary has the marks does not say that a model was trained on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One format: prefix, the text before, suffix, the text behind, middle. ends: what a model
    writes behind the middle, beside its end of sequence. joined: the text behind is encoded as one
    that goes on, where the tokenizer puts a space before every text."""

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()
    joined: bool = False


FAMILIES: dict[str, Family] = {
    "qwen2.5-coder": Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    ),
    "starcoder": Family(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<|endoftext|>", "<fim_pad>", "<repo_name>", "<file_sep>"),
    ),
    "deepseek-coder": Family(
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        ("<｜end▁of▁sentence｜>",),
    ),
    "codellama": Family("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",), joined=True),
}


@dataclass(frozen=True, slots=True)
class Filling:
    """A family's marks as token ids of one vocabulary. stops: none of them is part of a text that
    fills in."""

    prefix: int
    suffix: int
    middle: int
    stops: tuple[int, ...]
    joined: bool


def filling_of(token_id: Callable[[str], int | None]) -> Filling | None:
    """The marks that a vocabulary has, or None. token_id: a token's id by its name."""
    for family in FAMILIES.values():
        prefix, suffix, middle = map(token_id, (family.prefix, family.suffix, family.middle))
        if prefix is None or suffix is None or middle is None:
            continue
        ends = [token for token in map(token_id, family.ends) if token is not None]
        return Filling(prefix, suffix, middle, (prefix, suffix, middle, *ends), family.joined)
    return None
