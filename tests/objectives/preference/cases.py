"""Every preference loss with settings, and the oracle that says what it should be.

A new loss is a row here: the tests of test_losses.py and docs/reference/objectives.md need no more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lit_rlhf.objectives import preference
from lit_rlhf.objectives.preference import PreferenceLoss, PreferencePairs
from tests.oracles import preference as oracle

REFERENCE_POINT = 0.75


@dataclass(frozen=True)
class Case:
    """A loss and its oracle: a list of pairs -> a loss for each."""

    loss: PreferenceLoss
    oracle: Callable[[list[oracle.Pair]], list[float]]

    @property
    def name(self):
        return type(self.loss).__name__


def each(function, **options):
    return lambda pairs: [function(pair, **options) for pair in pairs]


def summed(*parts):
    """Add losses up: (weight, losses of all pairs)."""

    def total(pairs):
        columns = [[weight * loss for loss in losses(pairs)] for weight, losses in parts]
        return [sum(row) for row in zip(*columns, strict=True)]

    return total


def _divergences():
    for divergence, derivative in (
        (preference.ForwardKL(), oracle.forward_kl),
        (preference.JensenShannon(), oracle.jensen_shannon),
        (preference.AlphaDivergence(0.5), oracle.alpha_divergence),
        (preference.AlphaDivergence(0.2), partial(oracle.alpha_divergence, alpha=0.2)),
    ):
        for loss, function in (
            (preference.DPO, oracle.dpo),
            (preference.RobustDPO, oracle.robust),
            (preference.IPO, oracle.ipo),
            (preference.Hinge, oracle.hinge),
            (preference.EXO, oracle.exo),
            (preference.DiscoPOP, oracle.discopop),
        ):
            yield Case(loss(divergence=divergence), each(function, derivative=derivative))


CASES = [
    Case(preference.DPO(), each(oracle.dpo)),
    Case(preference.DPO(0.5, 0.2), each(oracle.dpo, beta=0.5, epsilon=0.2)),
    Case(preference.DPO(2.0, per_token=True), each(oracle.dpo, beta=2.0, per_token=True)),
    Case(preference.RobustDPO(0.5, 0.2), each(oracle.robust, beta=0.5, epsilon=0.2)),
    Case(preference.IPO(0.3), each(oracle.ipo, beta=0.3)),
    Case(preference.IPO(0.3, per_token=False), each(oracle.ipo, beta=0.3, per_token=False)),
    Case(preference.Hinge(0.2), each(oracle.hinge, beta=0.2)),
    Case(preference.EXO(0.5, 0.01), each(oracle.exo, beta=0.5, epsilon=0.01)),
    Case(preference.NCA(0.3), each(oracle.nca, beta=0.3)),
    Case(preference.BCO(0.3), each(oracle.bco, beta=0.3)),
    Case(preference.SPPOHard(0.3), each(oracle.sppo, beta=0.3)),
    Case(preference.AOT(0.3, 0.1), partial(oracle.aot, beta=0.3, epsilon=0.1)),
    Case(preference.AOT(0.3, paired=False), partial(oracle.aot, beta=0.3, paired=False)),
    Case(preference.APOZero(0.3), each(oracle.apo_zero, beta=0.3)),
    Case(preference.APODown(0.3), each(oracle.apo_down, beta=0.3)),
    Case(preference.DiscoPOP(0.3, 0.2), each(oracle.discopop, beta=0.3, tau=0.2)),
    Case(preference.SimPO(2.5, 0.8), each(oracle.simpo, beta=2.5, gamma=0.8)),
    Case(preference.ORPO(0.3), each(oracle.orpo, beta=0.3)),
    Case(preference.CPO(0.3, 0.5), each(oracle.cpo, beta=0.3, nll_coef=0.5)),
    Case(preference.ChosenNLL(), each(oracle.nll)),
    Case(
        preference.KTO(0.3, 1.5, 0.5),
        each(oracle.kto, mean_kl=REFERENCE_POINT, beta=0.3, lambda_d=1.5, lambda_u=0.5),
    ),
    Case(
        preference.WeightedSum(
            (preference.DPO(), preference.BCO(), preference.ChosenNLL()), (0.8, 0.2, 1.0)
        ),
        summed((0.8, each(oracle.dpo)), (0.2, each(oracle.bco)), (1.0, each(oracle.nll))),
    ),
    Case(
        preference.WeightedSum((preference.DPO(), preference.ChosenNLL()), (1.0, 0.5)),
        summed((1.0, each(oracle.dpo)), (0.5, each(oracle.nll))),
    ),
    *_divergences(),
]


# One of each class.
KINDS = list({case.name: case for case in CASES}.values())


def identify(case):
    """Name a case for pytest."""
    return repr(case.loss).replace("divergence=", "")


def make_pairs(logprobs, loss, *, probability=None, lengths=None):
    """Make pairs of log-probabilities `[4, M]`: policy and reference, each chosen and rejected.

    Soft labels where the loss takes them and none are given, and no reference where it reads none.
    """
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logprobs
    count = logprobs.shape[1]
    if probability is None:
        probability = torch.linspace(0, 1, count) if loss.takes_soft_labels else torch.ones(count)
    if lengths is None:
        lengths = torch.arange(2 * count).view(2, count) % 7 + 1
    return PreferencePairs(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen if loss.requires_reference else None,
        reference_rejected=reference_rejected if loss.requires_reference else None,
        chosen_lengths=lengths[0],
        rejected_lengths=lengths[1],
        probability=probability.to(logprobs.dtype),
        weight=torch.ones(count, dtype=logprobs.dtype),
        reference_point=torch.tensor(REFERENCE_POINT, dtype=logprobs.dtype)
        if loss.is_unpaired
        else None,
    )


# For losses by hand: one pair with the log-ratios x = 1 and y = -2.
PAIR = torch.tensor([[-3.0], [-5.0], [-4.0], [-3.0]], dtype=torch.float64)


def losses_of(loss, **settings):
    """Return what a loss says of `PAIR`, with a certain label unless another one is given."""
    settings = {"probability": torch.ones(1), **settings}
    return loss(make_pairs(PAIR, loss, **settings)).losses


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def random_logprobs(count, dtype=torch.float64):
    """Return log-probabilities `[4, M]` of responses of some tokens, policy near reference."""
    reference = -torch.rand(2, count, dtype=torch.float64) * 20 - 0.5
    policy = (reference + torch.randn(2, count, dtype=torch.float64) * 3).clamp(max=-0.1)
    return torch.cat([policy, reference]).to(dtype)


def golden(case, pairs):
    """Return what the oracle says of some pairs."""
    zeros = torch.zeros_like(pairs.policy_chosen)
    columns = [
        pairs.policy_chosen,
        pairs.policy_rejected,
        zeros if pairs.reference_chosen is None else pairs.reference_chosen,
        zeros if pairs.reference_rejected is None else pairs.reference_rejected,
        pairs.chosen_lengths,
        pairs.rejected_lengths,
        pairs.probability,
    ]
    rows = zip(*(column.detach().tolist() for column in columns), strict=True)
    return case.oracle([oracle.Pair(*row) for row in rows])
