"""How varied a set of texts is: a policy that found one good answer gives it to everyone."""

from __future__ import annotations

from collections.abc import Iterable


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Return the share of distinct word n-grams among all of them, over all texts together.

    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models,
    NAACL 2016. Words are what stands between spaces, in lower case; an n-gram never spans two
    texts. The share falls with the amount of text, so compare sets of about the same size.

    Args:
        texts: the responses.
        n: length of the n-grams, in words.

    Returns:
        A number in [0, 1]; 0 where no text has `n` words.

    >>> distinct_n(["a good film", "A good plot"])
    0.75
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.lower().split()
        grams = list(zip(*(words[start:] for start in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0
