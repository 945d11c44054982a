"""How long texts are, from some that ended and some that were cut off. Pure numbers.

The mean of those that ended alone is too small: in a stretch that is short for the texts only the
short ones end.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def mean_length(texts: Iterable[tuple[int, bool]]) -> tuple[float, float]:
    """(Mean tokens, share of the texts that are longer than any that was seen) of texts given as
    (tokens, whether it ended there). Where that share is not 0 the mean takes them for as long as
    the longest seen, and is the least that it can be.

    The area under the product-limit estimate of how many texts reach a length (Kaplan and Meier,
    Nonparametric estimation from incomplete observations, 1958): a text that was cut off counts
    among those that might have ended up to where it was, so when that happened must not hang on
    what it would have become. (0, 0) of no texts.
    """
    found = sorted(texts)
    left, reach, mean, before = len(found), 1.0 if found else 0.0, 0.0, 0
    for tokens, some in groupby(found, lambda text: text[0]):
        ends = [ended for _, ended in some]
        mean += reach * (tokens - before)
        reach *= 1.0 - sum(ends) / left
        left, before = left - len(ends), tokens
    return mean, reach
