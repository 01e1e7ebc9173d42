"""Noise contrastive alignment."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class NCA(PreferenceLoss):
    """Rewards of single responses, so that the chosen one's likelihood does not fall.

    With `x`, `y` the log-ratios of the better and the worse response:

    `loss = -log sigmoid(beta * x) - log sigmoid(-beta * x) / 2 - log sigmoid(-beta * y) / 2`

    Source: Chen et al. 2024 for two responses.

    Peers: TRL `nca_pair`, the same.

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
        noise = 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))
        losses = -logsigmoid(chosen) - noise
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
