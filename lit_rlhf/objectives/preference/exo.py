"""Efficient exact optimisation: the reverse KL to the labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class EXO(PreferenceLoss):
    """The KL from the policy's preference to the labels', where DPO has the other direction.

    With `x`, `y` and `q` as in `DPO` and `p = sigmoid(beta * (x - y))`:

    `loss = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))`

    Source: Ji et al. 2024, eq. 16, for two responses.

    Peers: TRL `exo_pair`, the same, where `probability = 1`.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        label_smoothing: share of labels assumed to be the wrong way round, in (0, 0.5); with 0 a
            certain label would cost infinity. 0.001 by the paper's code.
        divergence: from the reference.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    label_smoothing: float = 1e-3
    divergence: Divergence = ReverseKL()

    requires_reference = True
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.label_smoothing", self.label_smoothing, above=0, below=0.5)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * score for score in pairs.scores(self.divergence))
        logit = chosen - rejected
        smoothing, probability = self.label_smoothing, pairs.probability
        believed = probability * (1.0 - smoothing) + (1.0 - probability) * smoothing
        for_first = logit.sigmoid() * (logsigmoid(logit) - believed.log())
        for_other = (-logit).sigmoid() * (logsigmoid(-logit) - (1.0 - believed).log())
        return PreferenceOutput(for_first + for_other, chosen.detach(), rejected.detach())
