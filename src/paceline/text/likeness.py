"""Whether two tokenizers are the same: a draft's tokens are compared with the target's by id.

Ids that mean other words would make every acceptance meaningless. What tokens outside of the text
are called, or whether both have them, costs acceptance there alone.
"""

from __future__ import annotations

from paceline.text.tokenizer import Tokenizer

# Texts that two tokenizers must split alike: words, indentation, digits, scripts, odd bytes.
_PROBES = (
    "def load(path: str) -> dict[str, int]:\n    return {'a': 1}\n\n\t# 3.14 == 0x1F\r\n",
    "The quick brown fox, it's 2026: don't “quote” me — really!  Two spaces, NO break\u00a0here.",
    "  leading and trailing  ",
    "日本語の文章と한국어, Ελληνικά, русский, العربية, हिन्दी",
    "🙂 👩‍👩‍👧 e\u0301 \u00e9 ﬁ Ⅳ \x00\x7f\u200b",
    "1234567890 12 345 x86_64 snake_case CamelCase HTTPServer",
)


def difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Return None where both give the same ids for the same text, added and special tokens aside,
    else the first difference, in words. Of those aside `added_differences` tells."""
    for number, mine, its in _differences(one, other):
        if not (_is_added(one, number, mine) and _is_added(other, number, its)):
            return f"token {number} is {mine!r} against {its!r}"
    for text in _PROBES:
        a = one.encode(text, add_special_tokens=False)
        b = other.encode(text, add_special_tokens=False)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            at = min(len(a), len(b)) if at is None else at
            return (
                f"the same vocabulary, but {text[:24]!r}… is split differently from token {at} on"
            )
    return None


def added_differences(one: Tokenizer, other: Tokenizer) -> list[str]:
    """The ids that two tokenizers without a `difference` call differently, or that one of them
    lacks, in words."""
    return [
        f"{number} is {mine!r} against {its!r}" for number, mine, its in _differences(one, other)
    ]


def _differences(one: Tokenizer, other: Tokenizer) -> list[tuple[int, str | None, str | None]]:
    """Ids that do not have the same token in both, with both tokens, None for a missing one."""
    mine, its = one.vocabulary, other.vocabulary
    numbers = sorted(mine.keys() | its.keys()) if mine != its else ()
    pairs = ((number, mine.get(number), its.get(number)) for number in numbers)
    return [(number, a, b) for number, a, b in pairs if a != b]


def _is_added(tokenizer: Tokenizer, number: int, token: str | None) -> bool:
    """Whether an id is no part of a text's own vocabulary: added to it, or not there at all."""
    return token is None or number in tokenizer.added_ids
