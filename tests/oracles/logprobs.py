"""Softmax by its definition, with Python's floats, and the forms of logits that models use."""

import math


def logits(hidden, weight, bias, temperature, softcap, scale):
    rows = []
    for state in hidden:
        row = []
        for v in range(len(weight)):
            raw = math.fsum(float(a) * float(b) for a, b in zip(state, weight[v], strict=True))
            raw = scale * (raw + (0.0 if bias is None else float(bias[v])))
            if softcap is not None:
                raw = softcap * math.tanh(raw / softcap)
            row.append(raw / temperature)
        rows.append(row)
    return rows


def distribution(row, temperature=1.0):
    scaled = [float(z) / temperature for z in row]
    top = max(scaled)
    weights = [math.exp(z - top) for z in scaled]
    total = math.fsum(weights)
    return [w / total for w in weights]


def token_logprobs(rows, targets, temperature=1.0):
    return [
        math.log(distribution(row, temperature)[target])
        for row, target in zip(rows, targets, strict=True)
    ]


def token_entropy(rows, temperature=1.0):
    return [
        -math.fsum(p * math.log(p) for p in distribution(row, temperature) if p > 0) for row in rows
    ]
