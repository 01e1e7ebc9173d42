"""PPO (Schulman et al. 2017, eq. 7) and OpenAI's clipped value loss (2019), case by case."""

import math


def policy_loss(logprob, old_logprob, advantage, clip_range):
    """Loss and whether the clipped term is the one that counts."""
    ratio = math.exp(min(max(logprob - old_logprob, -20.0), 20.0))
    clipped_ratio = ratio
    if ratio > 1 + clip_range:
        clipped_ratio = 1 + clip_range
    if ratio < 1 - clip_range:
        clipped_ratio = 1 - clip_range
    surrogate, clipped_surrogate = ratio * advantage, clipped_ratio * advantage
    return -min(surrogate, clipped_surrogate), clipped_surrogate < surrogate


def value_loss(value, old_value, target, clip_range):
    error = (value - target) ** 2
    if clip_range is None:
        return error / 2, False
    near = value
    if value > old_value + clip_range:
        near = old_value + clip_range
    elif value < old_value - clip_range:
        near = old_value - clip_range
    clipped_error = (near - target) ** 2
    return max(error, clipped_error) / 2, clipped_error > error


def approximate_kl(logprob, old_logprob):
    return (logprob - old_logprob) ** 2 / 2
