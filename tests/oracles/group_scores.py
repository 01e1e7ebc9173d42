"""Scores of a prompt's samples against each other: plain loops in float64."""

import math


def standardized(scores, group_ids):
    """Return each score's distance from its group's mean, in the group's deviations."""
    results = []
    for score, own in zip(scores, group_ids, strict=True):
        if math.isnan(score):
            results.append(math.nan)
            continue
        members = [
            other
            for other, group in zip(scores, group_ids, strict=True)
            if group == own and not math.isnan(other)
        ]
        mean = sum(members) / len(members)
        variance = sum((other - mean) ** 2 for other in members) / max(len(members) - 1, 1)
        results.append((score - mean) / (math.sqrt(variance) + 1e-4))
    return results
