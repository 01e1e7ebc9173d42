"""Loshchilov & Hutter (2019), algorithm 2, with the decay scaled by the learning rate."""


def trajectory(weight, gradients, rate, beta1, beta2, eps, decay):
    """Weight after each step on one number."""
    mean = square = 0.0
    weights = []
    for step, gradient in enumerate(gradients, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        mean_hat = mean / (1 - beta1**step)
        square_hat = square / (1 - beta2**step)
        weight = weight - rate * (mean_hat / (square_hat**0.5 + eps) + decay * weight)
        weights.append(weight)
    return weights
