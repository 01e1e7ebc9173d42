"""Advantage estimators, each by its paper, row by row.

GAE is its definition as a sum (Schulman et al. 2016, eq. 16), RLOO leaves one out, and GRPO's
standard scores come from the standard library's mean and deviation.
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


def gae(rewards, values, mask, gamma, gae_lambda, critic_lambda=None):
    """Advantages and returns; masked tokens are taken out, and stand as 0 in the result."""
    return decoupled(
        rewards, values, mask, gamma, lambda length: gae_lambda, critic_lambda or gae_lambda
    )


def length_adaptive(rewards, values, mask, gamma, alpha, critic_lambda):
    """VAPO (Yue et al. 2025): lambda of a response of `length` tokens is 1 - 1 / (alpha length)."""

    def lambda_of(length):
        return 1 - 1 / (alpha * length) if alpha * length > 1 else 0.0

    return decoupled(rewards, values, mask, gamma, lambda_of, critic_lambda)


def decoupled(rewards, values, mask, gamma, lambda_of, critic_lambda):
    advantages, returns = [], []
    for reward_row, value_row, marks in zip(rewards, values, mask, strict=True):
        kept = [t for t, m in enumerate(marks) if m]
        columns = [reward_row[t] for t in kept], [value_row[t] for t in kept]
        own = gae_row(*columns, gamma, lambda_of(len(kept))) if kept else []
        advantages.append(put_back(own, marks))
        errors = gae_row(*columns, gamma, critic_lambda)
        targets = [error + float(v) for error, v in zip(errors, columns[1], strict=True)]
        returns.append(put_back(targets, marks))
    return advantages, returns


def reinforce(rewards, mask, gamma=1.0, baselines=None):
    """Discounted rewards to come, less a baseline a row."""
    result = []
    for i, (row, marks) in enumerate(zip(rewards, mask, strict=True)):
        kept = [float(r) for r, m in zip(row, marks, strict=True) if m]
        baseline = 0.0 if baselines is None else float(baselines[i])
        to_come = [
            math.fsum(gamma ** (s - t) * kept[s] for s in range(t, len(kept))) - baseline
            for t in range(len(kept))
        ]
        result.append(put_back(to_come, marks))
    return result


def put_back(values, marks):
    """Put the values of the tokens that count in their places, and 0 in the others."""
    rest = iter(values)
    return [next(rest) if m else 0.0 for m in marks]


def grpo(rewards, mask, groups, scale):
    totals = row_sums(rewards, mask)
    everyone = [total for total, marks in zip(totals, mask, strict=True) if any(marks)]
    result = []
    for i, marks in enumerate(mask):
        group = [totals[j] for j in members(mask, groups, groups[i])]
        advantage = totals[i] - statistics.fmean(group) if group else 0.0
        compared = {"group": group, "batch": everyone, "none": []}[scale]
        if len(compared) > 1:
            advantage /= statistics.stdev(compared) + 1e-4
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
