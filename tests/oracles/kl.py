"""Schulman's estimators (2020), with r = p(x) / q(x) for x drawn from q, the policy."""

import math


def k1(logprob, reference_logprob):
    r = math.exp(reference_logprob) / math.exp(logprob)
    return -math.log(r)


def k2(logprob, reference_logprob):
    r = math.exp(reference_logprob) / math.exp(logprob)
    return math.log(r) ** 2 / 2


def k3(logprob, reference_logprob):
    r = math.exp(reference_logprob) / math.exp(logprob)
    return (r - 1) - math.log(r)


def exact(probabilities, reference_probabilities):
    return math.fsum(
        p * math.log(p / q) for p, q in zip(probabilities, reference_probabilities, strict=True)
    )
