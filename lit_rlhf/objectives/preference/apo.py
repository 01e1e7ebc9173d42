"""Anchored preference optimisation: says where chosen and rejected responses shall go."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class APOZero(PreferenceLoss):
    """Raise the chosen and lower the rejected response, where the chosen is better than the policy.

    With `x`, `y` the log-ratios of the better and the worse response:

    `loss = 1 - sigmoid(beta * x) + sigmoid(beta * y)`

    Source: D'Oosterlinck et al. 2024, eq. 7 (APO-zero).

    Peers: TRL `apo_zero`, the same.

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
        # 1 - sigmoid(a) as sigmoid(-a): no difference of nearly equal numbers.
        losses = (-chosen).sigmoid() + rejected.sigmoid()
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())


@dataclass(frozen=True)
class APODown(PreferenceLoss):
    """Lower both, the rejected more, where the policy is better than the chosen response already.

    With `x`, `y` the log-ratios of the better and the worse response:

    `loss = sigmoid(beta * x) + 1 - sigmoid(beta * (x - y))`

    Source: D'Oosterlinck et al. 2024, eq. 8 (APO-down).

    Peers: TRL `apo_down`, the same.

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
        losses = chosen.sigmoid() + (rejected - chosen).sigmoid()
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
