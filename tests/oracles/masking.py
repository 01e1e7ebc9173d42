"""Masked statistics by counting, and whitening as in OpenAI's lm-human-preferences (2019)."""

import math


def counted(values, mask):
    return [float(v) for v, m in zip(values.ravel(), mask.ravel(), strict=True) if m]


def row_sums(values, mask):
    return [masked_sum(*row) for row in zip(values, mask, strict=True)]


def masked_sum(values, mask):
    return math.fsum(counted(values, mask))


def masked_mean(values, mask):
    kept = counted(values, mask)
    return math.fsum(kept) / len(kept) if kept else 0.0


def variance(values, mask):
    kept = counted(values, mask)
    if not kept:
        return 0.0
    mean = math.fsum(kept) / len(kept)
    return math.fsum((v - mean) ** 2 for v in kept) / len(kept)


def whiten(values, mask):
    mean, deviation = masked_mean(values, mask), math.sqrt(variance(values, mask) + 1e-8)
    result = values.astype("float64").copy()
    for index in range(values.size):
        if mask.flat[index]:
            result.flat[index] = (float(values.flat[index]) - mean) / deviation
        else:
            result.flat[index] = 0.0
    return result
