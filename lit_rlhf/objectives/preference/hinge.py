"""A hinge on the difference of log-ratios."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class Hinge(PreferenceLoss):
    """Push a pair apart until its margin is 1, and no further.

    With `x`, `y` as in `DPO`:

    `loss = max(0, 1 - beta * (x - y))`

    Source: Liu et al. 2023 (RSO); Zhao et al. 2023 (SLiC-HF) with log-ratios.

    Peers: TRL `hinge`, torchtune's `RSOLoss`, the same.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        divergence: from the reference.

    Raises:
        ConfigError: if `beta` is out of its range.
    """

    beta: float = 0.1
    divergence: Divergence = ReverseKL()

    requires_reference = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * score for score in pairs.scores(self.divergence))
        losses = (1.0 - (chosen - rejected)).relu()
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
