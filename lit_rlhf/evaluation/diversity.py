"""How varied a set of texts is: a policy that found one good answer gives it to everyone."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import special

from lit_rlhf.evaluation.bootstrap import CONFIDENCE, Estimate, bootstrap

Gram = tuple[str, ...]

_LONGEST_GRAM = 4
# Chen and Cherry 2014, method 1: counted in place of a precision's zero matches.
_SMOOTHING = 0.1


def distinct_n(texts: Sequence[str], n: int = 2) -> Estimate:
    """Return the share of distinct word n-grams among all of them, over all texts together.

    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models,
    NAACL 2016. Words are what is between spaces, in lower case; an n-gram never spans two
    texts. The share falls with the amount of text, so compare sets of about the same size.

    The interval is that of the jackknife over texts. The bootstrap would not do: a text that is
    drawn twice brings no n-gram of its own the second time, and every resample would look less
    varied than the texts are. Source: Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 11.

    Args:
        texts: one response or more, one of each prompt.
        n: length of the n-grams, in words.

    Returns:
        The share, and its interval (cut at 0 and 1); the ends are NaN for a single text, and all
        is NaN where no text has `n` words.

    >>> distinct_n(["a good film", "A good plot"]).value
    0.75
    """
    counts = [Counter(_grams(_words(text), n)) for text in texts]
    everywhere: Counter[Gram] = Counter()
    for count in counts:
        everywhere.update(count)
    num, total = len(texts), everywhere.total()
    value = len(everywhere) / total if total else math.nan
    if num == 1 or total == 0:
        return Estimate(value, math.nan, math.nan, num)
    without = np.empty(num)
    for index, count in enumerate(counts):
        own = sum(1 for gram, times in count.items() if everywhere[gram] == times)
        rest = total - count.total()
        without[index] = (len(everywhere) - own) / rest if rest else 0.0
    error = math.sqrt((num - 1) / num * float(((without - without.mean()) ** 2).sum()))
    half = float(special.stdtrit(num - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), num)


def self_bleu(texts: Sequence[str]) -> Estimate:
    """Estimate how much of each text the others say as well: mean BLEU-4 against all of them.

    Exact, in time that grows with the number of words alone: of each n-gram the two texts that
    have it most often are kept, and one of them is not the text at hand. Smoothed as NLTK's
    method 1, so that texts without a common 4-gram do not all have 0. Source: Zhu et al.,
    Texygen, 2018; Papineni et al., BLEU, 2002.

    Args:
        texts: one response or more, one of each prompt.

    Returns:
        0 for texts that share nothing, 1 for equal texts. The interval is that of the mean over
        texts, the set of the others held as it is. NaN for a single text.
    """
    if len(texts) == 1:
        return Estimate(math.nan, math.nan, math.nan, 1)
    values = np.array(_bleu_against_others([_words(text) for text in texts]))
    return bootstrap(lambda counts: counts @ values / values.size, values.size)


def _bleu_against_others(texts: Sequence[Sequence[str]]) -> list[float]:
    log_precisions = np.zeros(len(texts))
    for n in range(1, _LONGEST_GRAM + 1):
        counts = [Counter(_grams(words, n)) for words in texts]
        largest = _two_largest(counts)
        for index, count in enumerate(counts):
            matched = 0
            for gram, times in count.items():
                first, owner, second = largest[gram]
                matched += min(times, second if owner == index else first)
            # A text shorter than n words has no n-gram that could match.
            possible = max(count.total(), 1)
            log_precisions[index] += math.log((matched or _SMOOTHING) / possible) / _LONGEST_GRAM
    lengths = sorted(len(words) for words in texts)
    return [
        _brevity_penalty(len(words), lengths) * math.exp(log_precision) if words else 0.0
        for words, log_precision in zip(texts, log_precisions, strict=True)
    ]


def _two_largest(counts: Sequence[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """Return of each n-gram its largest count in a text, that text, and the next count."""
    largest: dict[Gram, tuple[int, int, int]] = {}
    for index, count in enumerate(counts):
        for gram, times in count.items():
            first, owner, second = largest.get(gram, (0, -1, 0))
            if times > first:
                largest[gram] = (times, index, first)
            elif times > second:
                largest[gram] = (first, owner, times)
    return largest


def _brevity_penalty(length: int, lengths: Sequence[int]) -> float:
    """Punish a text that is shorter than the other text whose length is closest to its own.

    Args:
        length: words of the text.
        lengths: of all texts in order, its own among them.
    """
    place = bisect_left(lengths, length)
    others = [*lengths[max(0, place - 1) : place], *lengths[place + 1 : place + 2]]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= closest else math.exp(1 - closest / length)


def _words(text: str) -> list[str]:
    return text.lower().split()


def _grams(words: Sequence[str], n: int) -> list[Gram]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))
