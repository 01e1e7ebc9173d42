"""Alignment by optimal transport: distributions of margins, not single pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class AOT(PreferenceLoss):
    """Make the better responses win in distribution: the k-th smallest against the k-th smallest.

    With `u = policy_chosen - policy_rejected` and `v = reference_chosen - reference_rejected`, or
    without `paired` the log-ratios `u` of the better and `v` of the worse responses, and
    `d = sorted(u) - sorted(v)` over the pairs of a process's batch:

    `loss = -(1 - label_smoothing) * log sigmoid(beta * d)
    - label_smoothing * log sigmoid(-beta * d)`

    Source: Melnyk et al. 2024. A loss is returned at the pair
    that its `u` comes from, and has that pair's weight. Pairs of weight 0 are not ranked.

    Peers: TRL `aot` and `aot_unpaired`, the same.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        label_smoothing: in [0, 0.5).
        paired: compare margins of pairs; false compares all better with all worse responses.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    paired: bool = True

    requires_reference = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.label_smoothing", self.label_smoothing, least=0, below=0.5)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        x, y = pairs.log_ratios
        u, v = x, y
        if self.paired:
            assert pairs.reference_chosen is not None
            assert pairs.reference_rejected is not None
            u = pairs.policy_chosen - pairs.policy_rejected
            v = pairs.reference_chosen - pairs.reference_rejected
        # Pairs of weight 0 come behind all others, and are compared with themselves.
        counts = pairs.weight > 0
        behind = torch.zeros_like(u).masked_fill(~counts, float("inf"))
        matched = (v + behind).sort().values[_ranks(u + behind)]
        logit = self.beta * (u - torch.where(counts, matched, v))
        smoothing = self.label_smoothing
        losses = -(1.0 - smoothing) * logsigmoid(logit) - smoothing * logsigmoid(-logit)
        return PreferenceOutput(losses, self.beta * x.detach(), self.beta * y.detach())


def _ranks(values: Tensor) -> Tensor:
    """Return the place of each value among all of them, from the smallest: `[M]` int64."""
    return values.detach().argsort().argsort()
