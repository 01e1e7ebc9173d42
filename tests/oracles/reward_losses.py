"""Losses of a reward model over whole prompts: rankings with ties, ratings, and pairs weighed."""

import itertools
import math

from tests.oracles.bradley_terry import centering, win_probability


def soft_pair(first, other, probability, centre=0.0):
    """Bradley-Terry with a share of judgments, and Eisenstein's penalty."""
    loss = -probability * math.log(win_probability(first, other))
    loss -= (1 - probability) * math.log(win_probability(other, first))
    return loss + centre * centering(first, other)


def plackett_luce(scores, places):
    """-log P(order), P a product of choices; the mean over all orders that the places allow.

    `places`: smaller is better, equal ones are tied.
    """
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(places[a] <= places[b] for a, b in itertools.pairwise(order))
    ]
    total = 0.0
    for order in orders:
        for place, best in enumerate(order):
            total -= math.log(
                math.exp(scores[best]) / sum(math.exp(scores[left]) for left in order[place:])
            )
    return total / len(orders)


def rating(score, mean_rating, mean=0.0, deviation=1.0):
    """Squared distance from the standardised rating."""
    return (score - (mean_rating - mean) / deviation) ** 2


def step(score, label):
    """Cross-entropy of a label that is right with a share of rollouts, at odds e^score."""
    right = 1 / (1 + math.exp(-score))
    return -label * math.log(right) - (1 - label) * math.log(1 - right)
