"""Identity preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class IPO(PreferenceLoss):
    """Regress the difference of log-ratios on a margin, so that certain labels do not pull on.

    With `x`, `y` as in `DPO`, each divided by the length of its response if `per_token`:

    `loss = probability * (x - y - 1 / (2 * beta))^2
    + (1 - probability) * (x - y + 1 / (2 * beta))^2`

    Source: Azar et al. 2023, eq. 17 with the paper's tau as `beta`, averaged over the label.

    Peers: TRL `ipo` averages over tokens as `per_token` does, OpenRLHF sums as the paper does, so
    their `beta` is not portable.

    Attributes:
        beta: the margin is `1 / (2 * beta)`, > 0.
        per_token: average the log-ratios over tokens; false sums them, as the paper does.
        divergence: from the reference.

    Raises:
        ConfigError: if `beta` is out of its range.
    """

    beta: float = 0.1
    per_token: bool = True
    divergence: Divergence = ReverseKL()

    requires_reference = True
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        x, y = pairs.scores(self.divergence, per_token=self.per_token)
        margin, probability = 1.0 / (2.0 * self.beta), pairs.probability
        as_labelled, other_way = (x - y - margin).square(), (x - y + margin).square()
        return PreferenceOutput(
            losses=probability * as_labelled + (1.0 - probability) * other_way,
            chosen_rewards=self.beta * x.detach(),
            rejected_rewards=self.beta * y.detach(),
        )
