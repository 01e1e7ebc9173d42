"""Self-play preference optimisation with hard labels."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class SPPOHard(PreferenceLoss):
    """Regress each log-ratio on its response's win rate against the policy, taken as 1 or 0.

    With `x`, `y` the log-ratios of the better and the worse response:

    `loss = (x - 1 / (2 * beta))^2 + (y + 1 / (2 * beta))^2`

    Source: Wu et al. 2024, eq. 4.7, with `eta = 1 / beta` and win rates of 1 and 0.

    Peers: TRL `sppo_hard`, the same.

    Attributes:
        beta: each log-ratio shall be `1 / (2 * beta)`, > 0; the paper's code has 0.001.

    Raises:
        ConfigError: if `beta` is out of its range.
    """

    beta: float = 0.1

    requires_reference = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        x, y = pairs.log_ratios
        target = 0.5 / self.beta
        return PreferenceOutput(
            losses=(x - target).square() + (y + target).square(),
            chosen_rewards=self.beta * x.detach(),
            rejected_rewards=self.beta * y.detach(),
        )
