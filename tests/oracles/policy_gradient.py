"""Policy losses, each by its paper, token by token; and OpenAI's clipped value loss (2019)."""

import math


def ratio_of(log_ratio):
    return math.exp(min(max(log_ratio, -20.0), 20.0))


def surrogate(ratio, advantage, low, high):
    """PPO (Schulman et al. 2017, eq. 7): loss, and whether the clipped term counts."""
    clipped_ratio = ratio
    if ratio > 1 + high:
        clipped_ratio = 1 + high
    if ratio < 1 - low:
        clipped_ratio = 1 - low
    plain, clipped = ratio * advantage, clipped_ratio * advantage
    return -min(plain, clipped), clipped < plain


def policy_loss(logprob, old_logprob, advantage, clip_range, high=None, dual=None):
    """With the dual clip of Ye et al. 2020, eq. 5: max(min(...), c * A) where A < 0."""
    ratio = ratio_of(logprob - old_logprob)
    loss, is_clipped = surrogate(ratio, advantage, clip_range, clip_range if high is None else high)
    if dual is not None and advantage < 0 and -loss < dual * advantage:
        return -dual * advantage, True
    return loss, is_clipped


def cispo(logprob, old_logprob, advantage, cap):
    """MiniMax-M1 (2025), eq. 4; the weight is a constant."""
    ratio = ratio_of(logprob - old_logprob)
    return -min(ratio, cap) * advantage * logprob, ratio > cap


def gspo_row(logprobs, old_logprobs, advantages, low, high, per_token):
    """GSPO (Zheng et al. 2025), eq. 5 and 7, for the tokens of one response."""
    log_ratio = math.fsum(new - old for new, old in zip(logprobs, old_logprobs, strict=True))
    ratio = ratio_of(log_ratio / len(logprobs) if per_token else log_ratio)
    return [surrogate(ratio, advantage, low, high) for advantage in advantages]


def token_mean(rows):
    tokens = [loss for row in rows for loss in row]
    return math.fsum(tokens) / max(1, len(tokens))


def sequence_mean(rows):
    means = [math.fsum(row) / len(row) for row in rows if row]
    return math.fsum(means) / max(1, len(means))


def constant_length(rows, length):
    return math.fsum(math.fsum(row) / length for row in rows) / max(1, sum(map(bool, rows)))


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
