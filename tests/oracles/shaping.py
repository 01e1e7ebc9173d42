"""Reward a token: minus beta times KL everywhere, the score on the last token."""


def token_rewards(scores, token_kl, mask, kl_coef):
    rewards = []
    for score, kls, marks in zip(scores, token_kl, mask, strict=True):
        positions = [t for t, m in enumerate(marks) if m]
        row = [0.0] * len(marks)
        for t in positions:
            row[t] = -kl_coef * float(kls[t])
        if positions:
            row[positions[-1]] += float(score)
        rewards.append(row)
    return rewards


def soft_overlong(length, longest, buffer):
    """DAPO (Yu et al. 2025), eq. 13, in its three cases."""
    if length <= longest - buffer:
        return 0.0
    if length <= longest:
        return ((longest - buffer) - length) / buffer
    return -1.0
