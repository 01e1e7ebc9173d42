"""Binary classifier optimisation, on pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class BCO(PreferenceLoss):
    """A classifier of single responses into good and bad: how good a response is, not which wins.

    With `x`, `y` the log-ratios of the better and the worse response:

    `loss = -log sigmoid(beta * x) - log sigmoid(-beta * y)`

    Source: Jung et al. 2024, with the reward shift at 0; the quality term of MPO.

    Peers: TRL `bco_pair`, the same; its `BCOTrainer` has the shift, a running mean of rewards.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.

    Raises:
        ConfigError: if `beta` is out of its range.
    """

    beta: float = 0.1

    requires_reference = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * ratio for ratio in pairs.log_ratios)
        losses = -logsigmoid(chosen) - logsigmoid(-rejected)
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
