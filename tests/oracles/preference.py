"""Preference losses in the papers' own terms: probabilities, odds, divergences, expectations.

Plain numbers, one pair at a time. A soft label is the mean over whom a labeler would have chosen:
the pair as it is, or turned round.
"""

import math
from typing import NamedTuple


class Pair(NamedTuple):
    """Log-probabilities summed over tokens, under policy (`pi`) and reference (`ref`)."""

    pi_w: float
    pi_l: float
    ref_w: float
    ref_l: float
    len_w: int
    len_l: int
    probability: float = 1.0

    def turned(self):
        return Pair(self.pi_l, self.pi_w, self.ref_l, self.ref_w, self.len_l, self.len_w)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def mean_over_labels(loss):
    """Make a loss of certain labels one of soft labels: an expectation over the label."""

    def expected(pair, **options):
        p = pair.probability
        return p * loss(pair, **options) + (1 - p) * loss(pair.turned(), **options)

    return expected


# Derivatives f'(u) of the f-divergences (Wang et al. 2023, table 1), by the ratio u. ------------


def reverse_kl(u):  # f(u) = u log u
    return math.log(u) + 1


def forward_kl(u):  # f(u) = -log u
    return -1 / u


def jensen_shannon(u):  # f(u) = u log u - (u + 1) log((u + 1) / 2)
    return math.log(2 * u / (1 + u))


def alpha_divergence(u, alpha=0.5):  # f(u) = (u^(1-a) - (1-a) u - a) / (a (a - 1))
    return (1 - u**-alpha) / alpha


def difference(pair, derivative=reverse_kl, per_token=False):
    """h of the papers: f'(u_w) - f'(u_l), each less f'(1)."""
    parts = []
    for pi, ref, length in (
        (pair.pi_w, pair.ref_w, pair.len_w),
        (pair.pi_l, pair.ref_l, pair.len_l),
    ):
        moved = derivative(math.exp(pi - ref)) - derivative(1.0)
        parts.append(moved / length if per_token else moved)
    return parts[0] - parts[1]


# Losses of a pair with the better response first. ------------------------------------------------


@mean_over_labels
def dpo(pair, beta=0.1, epsilon=0.0, **how):
    """Rafailov et al. 2023, eq. 7; labels wrong with probability epsilon (Mitchell 2023)."""
    h = beta * difference(pair, **how)
    return -(1 - epsilon) * log_sigmoid(h) - epsilon * log_sigmoid(-h)


@mean_over_labels
def robust(pair, beta=0.1, epsilon=0.1, **how):
    """Chowdhury et al. 2024: the unbiased estimate of the loss under flips of rate epsilon."""
    as_labelled = -log_sigmoid(beta * difference(pair, **how))
    flipped = -log_sigmoid(beta * difference(pair.turned(), **how))
    return ((1 - epsilon) * as_labelled - epsilon * flipped) / (1 - 2 * epsilon)


@mean_over_labels
def ipo(pair, beta=0.1, per_token=True, **how):
    """Azar et al. 2023, eq. 17."""
    return (difference(pair, per_token=per_token, **how) - 1 / (2 * beta)) ** 2


def hinge(pair, beta=0.1, **how):
    """Zhao et al. 2023, on log-ratios (Liu et al. 2023)."""
    return max(0.0, 1 - beta * difference(pair, **how))


def exo(pair, beta=0.1, epsilon=1e-3, **how):
    """Ji et al. 2024: KL(policy's preference || smoothed labels), two outcomes."""
    policy = sigmoid(beta * difference(pair, **how))
    label = pair.probability * (1 - epsilon) + (1 - pair.probability) * epsilon
    total = 0.0
    for p, q in ((policy, label), (1 - policy, 1 - label)):
        if p > 0:
            total += p * math.log(p / q)
    return total


def nca(pair, beta=0.1):
    """Chen et al. 2024, K = 2: the better is data, both are noise with weight 1 / 2."""
    r_w, r_l = beta * (pair.pi_w - pair.ref_w), beta * (pair.pi_l - pair.ref_l)
    return -log_sigmoid(r_w) - sum(log_sigmoid(-r) for r in (r_w, r_l)) / 2


def bco(pair, beta=0.1):
    """Jung et al. 2024: cross-entropy of a classifier with logit r."""
    good = sigmoid(beta * (pair.pi_w - pair.ref_w))
    bad = sigmoid(beta * (pair.pi_l - pair.ref_l))
    return -math.log(good) - math.log1p(-bad)


def sppo(pair, beta=0.1):
    """Wu et al. 2024: (log ratio - eta (P - 1/2))^2 with eta = 1 / beta and P of 1 and 0."""
    eta = 1 / beta
    w = pair.pi_w - pair.ref_w - eta * (1 - 0.5)
    return w**2 + (pair.pi_l - pair.ref_l - eta * (0 - 0.5)) ** 2


def apo_zero(pair, beta=0.1):
    """D'Oosterlinck et al. 2024: -sigma(r_w) + sigma(r_l), shifted to be positive."""
    return 1 - sigmoid(beta * (pair.pi_w - pair.ref_w)) + sigmoid(beta * (pair.pi_l - pair.ref_l))


def apo_down(pair, beta=0.1):
    """D'Oosterlinck et al. 2024: sigma(r_w) - sigma(r_w - r_l), shifted to be positive."""
    r_w, r_l = beta * (pair.pi_w - pair.ref_w), beta * (pair.pi_l - pair.ref_l)
    return sigmoid(r_w) + 1 - sigmoid(r_w - r_l)


def discopop(pair, beta=0.1, tau=0.05, **how):
    """Lu et al. 2024: logistic and exponential loss, mixed by sigma(rho / tau)."""
    rho = beta * difference(pair, **how)
    gate = sigmoid(rho / tau)
    # far on the wrong side the gate is smaller than exp(-rho) is large
    exponential = 0.0 if rho < -30 else math.exp(-rho) * gate
    return -log_sigmoid(rho) * (1 - gate) + exponential


def aot(pairs, beta=0.1, epsilon=0.0, paired=True):
    """Melnyk et al. 2024: quantile by quantile; at the place of the policy's quantile."""
    if paired:
        first = [p.pi_w - p.pi_l for p in pairs]
        second = [p.ref_w - p.ref_l for p in pairs]
    else:
        first = [p.pi_w - p.ref_w for p in pairs]
        second = [p.pi_l - p.ref_l for p in pairs]
    losses = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=first.__getitem__)
    for place, other in zip(order, sorted(second), strict=True):
        d = beta * (first[place] - other)
        losses[place] = -(1 - epsilon) * log_sigmoid(d) - epsilon * log_sigmoid(-d)
    return losses


@mean_over_labels
def simpo(pair, beta=2.0, gamma=0.5):
    """Meng et al. 2024, eq. 6."""
    return -log_sigmoid(beta / pair.len_w * pair.pi_w - beta / pair.len_l * pair.pi_l - gamma)


@mean_over_labels
def nll(pair):
    """Pang et al. 2024, eq. 1: the second term, by the response's length."""
    return -pair.pi_w / pair.len_w


@mean_over_labels
def cpo(pair, beta=0.1, nll_coef=1.0):
    """Xu et al. 2024: L_prefer + L_NLL."""
    return -log_sigmoid(beta * pair.pi_w - beta * pair.pi_l) - nll_coef * pair.pi_w / pair.len_w


@mean_over_labels
def orpo(pair, beta=0.1):
    """Hong et al. 2024, eq. 6 and 7: L_SFT + lambda L_OR with P(y|x) the geometric mean."""
    p_w, p_l = math.exp(pair.pi_w / pair.len_w), math.exp(pair.pi_l / pair.len_l)
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    return -math.log(p_w) - beta * log_sigmoid(math.log(odds_w / odds_l))


def kto(pair, mean_kl, beta=0.1, lambda_d=1.0, lambda_u=1.0):
    """Ethayarajh et al. 2024: lambda_y - v(x, y), with the label's probability as its share."""
    r, z = pair.pi_w - pair.ref_w, max(0.0, mean_kl)
    desirable = lambda_d - lambda_d * sigmoid(beta * (r - z))
    undesirable = lambda_u - lambda_u * sigmoid(beta * (z - r))
    return pair.probability * desirable + (1 - pair.probability) * undesirable
