import math
from collections import Counter

import numpy as np
import pytest

from lit_rlhf.evaluation.diversity import distinct_n, self_bleu

RANDOM = np.random.default_rng(4)
WORDS = ["the", "film", "is", "good", "bad", "and", "plot", "dull"]


def random_texts(num_texts, num_words=12):
    return [
        " ".join(RANDOM.choice(WORDS, size=RANDOM.integers(1, num_words))) for _ in range(num_texts)
    ]


def test_distinct_bigrams_by_hand():
    # good film / good plot / a good: 4 different of 4; then one of them twice.
    assert distinct_n(["a good film", "A good plot"]).value == 0.75
    assert distinct_n(["a a a"]).value == 0.5
    assert distinct_n(["a b c", "a b c"], n=3).value == 0.5


def bleu_by_the_paper(text, others):
    """BLEU-4 of one text against several references, with NLTK's smoothing by method 1."""

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    words = text.split()
    log_sum = 0.0
    for n in (1, 2, 3, 4):
        own = grams(words, n)
        matched = sum(
            min(times, max(grams(other.split(), n)[gram] for other in others))
            for gram, times in own.items()
        )
        possible = max(1, sum(own.values()))
        log_sum += 0.25 * math.log((matched if matched else 0.1) / possible)
    lengths = [len(other.split()) for other in others]
    closest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    penalty = 1 if len(words) >= closest else math.exp(1 - closest / len(words))
    return penalty * math.exp(log_sum)


@pytest.mark.parametrize("num_texts", [2, 3, 25])
def test_self_bleu_against_the_definition(num_texts):
    texts = random_texts(num_texts)
    expected = [
        bleu_by_the_paper(text, texts[:index] + texts[index + 1 :])
        for index, text in enumerate(texts)
    ]
    estimate = self_bleu(texts)
    assert estimate.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == num_texts


def test_self_bleu_of_equal_and_of_empty_texts():
    assert self_bleu(["the film is good and dull"] * 4).value == pytest.approx(1)
    assert self_bleu(["", "the film is good"]).value < 0.1
    assert math.isnan(self_bleu(["alone"]).value)


def test_distinct_n_interval_is_the_jackknife_by_leaving_texts_out():
    texts = random_texts(15)
    without = [distinct_n(texts[:i] + texts[i + 1 :]).value for i in range(15)]
    error = math.sqrt(14 / 15 * sum((value - np.mean(without)) ** 2 for value in without))
    estimate = distinct_n(texts)
    half = 2.145 * error  # Student's quantile at 14 degrees of freedom
    assert estimate.low == pytest.approx(estimate.value - half, rel=1e-3)
    assert estimate.high == pytest.approx(min(1, estimate.value + half), rel=1e-3)


def test_without_text_there_is_nothing_to_say():
    assert math.isnan(distinct_n(["one text"]).low)
    assert math.isnan(distinct_n(["one", "two"]).value)
