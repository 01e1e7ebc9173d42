"""Direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.bradley_terry import bradley_terry_loss
from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class DPO(PreferenceLoss):
    """Bradley-Terry on the rewards that the policy implies.

    With `x`, `y` the divergence's scores of the log-ratios (by default the log-ratios) of the
    first and the other response, and
    `q = probability * (1 - label_smoothing) + (1 - probability) * label_smoothing`:

    `loss = -q * log sigmoid(beta * (x - y)) - (1 - q) * log sigmoid(-beta * (x - y))`

    Source: Rafailov et al. 2023, eq. 7, which is `probability = 1`; the smoothing is the
    conservative DPO of Mitchell 2023, the divergences are Wang et al. 2023.

    Peers: TRL `sigmoid` ignores `label_smoothing`; OpenRLHF and torchtune have it. `per_token` is
    TRL's `sigmoid_norm`.

    Attributes:
        beta: how strongly the reference holds the policy, > 0; 0.1 by the paper.
        label_smoothing: share of judgments assumed to be the wrong way round, in [0, 0.5).
        per_token: divide `x` and `y` by the lengths of their responses, so that long responses
            have no advantage; `beta` then needs to be some length of a response larger.
        divergence: from the reference.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    per_token: bool = False
    divergence: Divergence = ReverseKL()

    requires_reference = True
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.label_smoothing", self.label_smoothing, least=0, below=0.5)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        x, y = pairs.scores(self.divergence, per_token=self.per_token)
        chosen, rejected = self.beta * x, self.beta * y
        smoothing, probability = self.label_smoothing, pairs.probability
        believed = probability * (1.0 - smoothing) + (1.0 - probability) * smoothing
        losses = bradley_terry_loss(chosen, rejected, believed)
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
