"""Truncated importance sampling (Yao et al. 2025): min(p_trainer / p_sampler, C), by token."""

import math


def weight(old_logprob, sampler_logprob, cap):
    """Weight, and whether the cap is what counts."""
    ratio = math.exp(old_logprob) / math.exp(sampler_logprob)
    return (cap, True) if ratio > cap else (ratio, False)


def corrected_mean(trainer, sampler, values, cap):
    """Expectation of weight times value over tokens drawn by the sampler: by enumeration."""
    return math.fsum(
        q * min(p / q, cap) * value
        for p, q, value in zip(trainer, sampler, values, strict=True)
        if q > 0
    )
