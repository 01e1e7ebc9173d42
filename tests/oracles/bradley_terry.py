"""Bradley and Terry (1952): P(i beats j) = e^r_i / (e^r_i + e^r_j)."""

import math


def win_probability(score, other):
    return math.exp(score) / (math.exp(score) + math.exp(other))


def loss(chosen, rejected, probability=1.0, margin=0.0):
    """With Touvron et al. (2023), equation 2: the first is to be better by the margin."""
    rejected = rejected + margin
    first_wins = math.log(win_probability(chosen, rejected))
    second_wins = math.log(win_probability(rejected, chosen))
    return -(probability * first_wins + (1 - probability) * second_wins)


def centering(chosen, rejected):
    return (chosen + rejected) ** 2
