"""Ziegler et al. (2019), section 2.2: a log-space proportional controller."""


def trajectory(initial, target, horizon, max_error, measurements):
    """Coefficients after each (kl, num_episodes)."""
    beta, betas = initial, []
    for kl, num_episodes in measurements:
        error = (kl - target) / target
        if abs(error) > max_error:
            error = max_error if error > 0 else -max_error
        beta = beta + beta * error * num_episodes / horizon
        betas.append(beta)
    return betas
