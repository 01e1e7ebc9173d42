"""Every policy loss and aggregation with settings, and the oracle that says what it should be.

A new one is a row here: the tests beside this file and docs/reference/objectives.md need no more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lit_rlhf.objectives import KLPenalty, policy
from lit_rlhf.objectives.policy import LossAggregation, PolicyLoss, PolicyTokens
from tests.objectives.agreement import normal, random_mask
from tests.oracles import kl as kl_oracle
from tests.oracles import policy_gradient as oracle


@dataclass(frozen=True)
class Case:
    """A loss and its oracle: the tokens of one response -> (loss, is clipped) for each."""

    loss: PolicyLoss
    oracle: Callable[..., list[tuple[float, bool]]]

    @property
    def name(self):
        return type(self.loss).__name__

    def golden(self, tokens):
        """Return losses and clip marks of the tokens that count, row by row."""
        found = []
        for *columns, marks in zip(*(part.detach().tolist() for part in tokens), strict=True):
            kept = [[x for x, m in zip(column, marks, strict=True) if m] for column in columns]
            found.append(self.oracle(*kept) if any(marks) else [])
        return found


def each(function, *options):
    return lambda *columns: [function(*token, *options) for token in zip(*columns, strict=True)]


def rows_of(function, *options):
    return lambda *columns: function(*columns, *options)


CASES = [
    Case(policy.PPOClip(), each(oracle.policy_loss, 0.2)),
    Case(policy.PPOClip(0.5), each(oracle.policy_loss, 0.5)),
    Case(policy.PPOClip(0.2, 0.4), each(oracle.policy_loss, 0.2, 0.4)),
    Case(policy.PPOClip(0.2, dual_clip=1.5), each(oracle.policy_loss, 0.2, None, 1.5)),
    Case(policy.PPOClip(0.1, 0.6, 1.1), each(oracle.policy_loss, 0.1, 0.6, 1.1)),
    Case(policy.CISPO(), each(oracle.cispo, 5.0)),
    Case(policy.CISPO(1.2), each(oracle.cispo, 1.2)),
    Case(policy.GSPO(), rows_of(oracle.gspo_row, 3e-4, 4e-4, True)),
    Case(policy.GSPO(0.1, 0.2), rows_of(oracle.gspo_row, 0.1, 0.2, True)),
    Case(policy.GSPO(0.2, 0.2, per_token=False), rows_of(oracle.gspo_row, 0.2, 0.2, False)),
]
KINDS = list({case.name: case for case in CASES}.values())


@dataclass(frozen=True)
class AggregationCase:
    """An aggregation and its oracle: the losses of each response's tokens -> one loss."""

    aggregation: LossAggregation
    oracle: Callable[[list[list[float]]], float]

    @property
    def name(self):
        return type(self.aggregation).__name__

    def golden(self, losses, mask):
        rows = zip(losses.detach().tolist(), mask.tolist(), strict=True)
        return self.oracle([[x for x, m in zip(*row, strict=True) if m] for row in rows])


AGGREGATIONS = [
    AggregationCase(policy.TokenMean(), oracle.token_mean),
    AggregationCase(policy.SequenceMean(), oracle.sequence_mean),
    AggregationCase(policy.ConstantLength(7), partial(oracle.constant_length, length=7)),
]


@dataclass(frozen=True)
class PenaltyCase:
    """A KL penalty in the loss and its oracle: new, old and reference log-probability -> loss."""

    penalty: KLPenalty
    oracle: Callable[[float, float, float], float]


def weighted(function):
    return lambda new, old, ref: function(new, ref) * oracle.ratio_of(new - old)


def plain(function):
    return lambda new, old, ref: function(new, ref)


PENALTIES = [
    PenaltyCase(KLPenalty("loss", "k2"), plain(kl_oracle.k2)),
    PenaltyCase(KLPenalty("loss", "k3"), plain(kl_oracle.k3)),
    PenaltyCase(KLPenalty("loss", "k3_straight_through"), plain(kl_oracle.k3)),
    PenaltyCase(KLPenalty("loss", "k1", True), weighted(kl_oracle.k1)),
    PenaltyCase(KLPenalty("loss", "k3", True), weighted(kl_oracle.k3)),
]


def identify(case):
    """Name a case for pytest."""
    return repr(case.loss if isinstance(case, Case) else case.aggregation)


def random_tokens(dtype=torch.float64, num_tokens=6, spread=0.4):
    """Return seven responses of a policy near the old one; the first has no token."""
    logprobs = -torch.rand(7, num_tokens, dtype=torch.float64) * 5
    old = logprobs + normal(7, num_tokens, scale=spread)
    advantages = normal(7, num_tokens)
    columns = (column.to(dtype) for column in (logprobs, old, advantages))
    return PolicyTokens(*columns, random_mask(7, num_tokens))


def all_count(*columns):
    """Return tokens that all count."""
    return PolicyTokens(*columns, torch.ones(columns[0].shape, dtype=torch.bool))
