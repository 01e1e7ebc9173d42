"""GAE by its definition as a sum (Schulman et al. 2016, eq. 16), RLOO by leaving one out, GRPO.

GRPO's standard scores come from the standard library's mean and deviation.
"""

import math
import statistics

from tests.oracles.masking import row_sums


def gae_row(rewards, values, gamma, gae_lambda):
    """Advantages of one row without masked tokens: the sum, not the recursion."""
    length = len(rewards)
    following = [*[float(v) for v in values[1:]], 0.0]
    deltas = [float(rewards[t]) + gamma * following[t] - float(values[t]) for t in range(length)]
    return [
        math.fsum((gamma * gae_lambda) ** (s - t) * deltas[s] for s in range(t, length))
        for t in range(length)
    ]


def gae(rewards, values, mask, gamma, gae_lambda):
    """Advantages and returns; masked tokens are taken out, and stand as 0 in the result."""
    advantages, returns = [], []
    for reward_row, value_row, marks in zip(rewards, values, mask, strict=True):
        kept = [t for t, m in enumerate(marks) if m]
        row = gae_row(
            [reward_row[t] for t in kept], [value_row[t] for t in kept], gamma, gae_lambda
        )
        advantage_row, return_row = [0.0] * len(marks), [0.0] * len(marks)
        for t, advantage in zip(kept, row, strict=True):
            advantage_row[t] = advantage
            return_row[t] = advantage + float(value_row[t])
        advantages.append(advantage_row)
        returns.append(return_row)
    return advantages, returns


def grpo(rewards, mask, groups, scale):
    totals = row_sums(rewards, mask)
    result = []
    for i, marks in enumerate(mask):
        group = [totals[j] for j in members(mask, groups, groups[i])]
        advantage = totals[i] - statistics.fmean(group) if group else 0.0
        if scale and len(group) > 1:
            advantage /= statistics.stdev(group) + 1e-4
        result.append([advantage if m else 0.0 for m in marks])
    return result


def rloo(rewards, mask, groups):
    totals = row_sums(rewards, mask)
    result = []
    for i, marks in enumerate(mask):
        others = [totals[j] for j in members(mask, groups, groups[i]) if j != i]
        advantage = totals[i] - math.fsum(others) / len(others) if others else 0.0
        result.append([advantage if m else 0.0 for m in marks])
    return result


def members(mask, groups, name):
    """The rows of a group that have tokens."""
    return [j for j, marks in enumerate(mask) if groups[j] == name and any(marks)]
