"""Every advantage estimator with settings, and the oracle that says what it should be.

A new estimator is a row here: test_estimators.py and docs/reference/objectives.md need no more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lit_rlhf.objectives import advantage
from lit_rlhf.objectives.advantage import AdvantageEstimator, RewardedTokens
from tests.objectives.agreement import normal, random_mask
from tests.oracles import advantages as oracle

GROUPS = torch.tensor([7, 7, 3, 3, 3, 9, 9])


@dataclass(frozen=True)
class Case:
    """An estimator and its oracle: lists of rewards, mask, groups, values, greedy -> two lists."""

    estimator: AdvantageEstimator
    oracle: Callable[..., tuple[list, list | None]]

    @property
    def name(self):
        return type(self.estimator).__name__

    def golden(self, tokens):
        rows = (None if part is None else part.detach().double().numpy() for part in tokens[:5])
        rewards, mask, groups, values, greedy = rows
        return self.oracle(rewards, mask.astype(bool), groups.tolist(), values, greedy)


def by_critic(function, *options):
    return lambda rewards, mask, groups, values, greedy: function(rewards, values, mask, *options)


def by_group(function, *options):
    return lambda rewards, mask, groups, *_: (function(rewards, mask, groups, *options), None)


def by_row(*options):
    return lambda rewards, mask, *_: (oracle.reinforce(rewards, mask, *options), None)


def remax(rewards, mask, groups, values, greedy):
    return oracle.reinforce(rewards, mask, 1.0, greedy), None


CASES = [
    Case(advantage.GAE(), by_critic(oracle.gae, 1.0, 0.95)),
    Case(advantage.GAE(0.9, 0.5), by_critic(oracle.gae, 0.9, 0.5)),
    Case(advantage.GAE(0.9, 0.0), by_critic(oracle.gae, 0.9, 0.0)),
    Case(advantage.GAE(1.0, 1.0), by_critic(oracle.gae, 1.0, 1.0)),
    Case(advantage.GAE(0.9, 0.5, 1.0), by_critic(oracle.gae, 0.9, 0.5, 1.0)),
    Case(advantage.LengthAdaptiveGAE(0.9, 0.4), by_critic(oracle.length_adaptive, 0.9, 0.4, 1.0)),
    Case(
        advantage.LengthAdaptiveGAE(1.0, 0.9, 0.5),
        by_critic(oracle.length_adaptive, 1.0, 0.9, 0.5),
    ),
    Case(advantage.RLOO(), by_group(oracle.rloo)),
    Case(advantage.GRPO(2), by_group(oracle.grpo, "group")),
    Case(advantage.GRPO(2, "batch"), by_group(oracle.grpo, "batch")),
    Case(advantage.GRPO(2, "none"), by_group(oracle.grpo, "none")),
    Case(advantage.ReinforcePlusPlus(), by_row()),
    Case(advantage.ReinforcePlusPlus(0.8, 2), by_row(0.8)),
    Case(advantage.ReinforcePlusPlusBaseline(2), by_group(oracle.grpo, "none")),
    Case(advantage.ReMax(), remax),
]
KINDS = list({case.name: case for case in CASES}.values())
COMPARING = [case for case in CASES if hasattr(case.estimator, "k") and case.estimator.k > 1]
COMPARING = [case for case in COMPARING if case.name != "ReinforcePlusPlus"]


def identify(case):
    """Name a case for pytest."""
    return repr(case.estimator)


def make_tokens(rewards, mask=None, groups=None, *, values=None, greedy=None):
    """Return rewarded tokens: all count, in two groups or those given, with random values."""
    mask = torch.ones(rewards.shape, dtype=torch.bool) if mask is None else mask
    groups = torch.arange(len(rewards)) % max(1, len(rewards) // 2) if groups is None else groups
    values = (
        torch.linspace(-1, 1, rewards.numel()).view(rewards.shape) if values is None else values
    )
    greedy = torch.linspace(2, -2, len(rewards)) if greedy is None else greedy
    return RewardedTokens(rewards, mask, groups, values.to(rewards.dtype), greedy.to(rewards.dtype))


def random_tokens(dtype=torch.float64, num_tokens=6):
    """Return seven responses in three groups; the first has no token."""
    shape = len(GROUPS), num_tokens
    rewards, values = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    return make_tokens(rewards, random_mask(*shape), GROUPS, values=values)
