"""Negative log-likelihood as a sum over the tokens that count, perplexity from the total."""

import math


def response_nll(logprobs, mask):
    return [
        -math.fsum(float(lp) for lp, m in zip(row, marks, strict=True) if m)
        for row, marks in zip(logprobs, mask, strict=True)
    ]


def perplexity(probabilities):
    """Geometric mean of the inverse probabilities."""
    return math.prod(1 / p for p in probabilities) ** (1 / len(probabilities))
