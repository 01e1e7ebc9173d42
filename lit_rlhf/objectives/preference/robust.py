"""Robust DPO: unbiased although some labels are flipped."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.bradley_terry import bradley_terry_loss
from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class RobustDPO(PreferenceLoss):
    """DPO whose mean over flipped labels is DPO's on the true ones.

    With `x`, `y` as in `DPO` and `a = (probability - label_smoothing) / (1 - 2 * label_smoothing)`:

    `loss = -a * log sigmoid(beta * (x - y)) - (1 - a) * log sigmoid(-beta * (x - y))`

    Source: Chowdhury et al. 2024, which is `probability = 1`. It may be negative.

    Peers: TRL `robust`, the same.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        label_smoothing: share of labels that are flipped, in (0, 0.5); with 0 it would be `DPO`.
        divergence: from the reference.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.1
    divergence: Divergence = ReverseKL()

    requires_reference = True
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.label_smoothing", self.label_smoothing, above=0, below=0.5)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * score for score in pairs.scores(self.divergence))
        rate = self.label_smoothing
        unflipped = (pairs.probability - rate) / (1.0 - 2.0 * rate)
        losses = bradley_terry_loss(chosen, rejected, unflipped)
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
