"""DPO (Rafailov et al. 2023, eq. 7) with labels that are wrong with probability epsilon."""

import math


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def dpo(
    policy_chosen,
    policy_rejected,
    reference_chosen,
    reference_rejected,
    probability,
    beta,
    epsilon=0.0,
):
    """Loss and the two implicit rewards of one pair."""
    chosen_reward = beta * (policy_chosen - reference_chosen)
    rejected_reward = beta * (policy_rejected - reference_rejected)
    h = chosen_reward - rejected_reward
    as_labelled = -(1 - epsilon) * log_sigmoid(h) - epsilon * log_sigmoid(-h)
    other_way = -(1 - epsilon) * log_sigmoid(-h) - epsilon * log_sigmoid(h)
    return (
        probability * as_labelled + (1 - probability) * other_way,
        chosen_reward,
        rejected_reward,
    )
