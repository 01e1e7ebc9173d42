"""SimPO: the mean log-probability as reward, without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class SimPO(PreferenceLoss):
    """Make the better response likelier a token, by a margin; no reference is held.

    With `x`, `y` the log-probabilities a token of the first and the other response:

    `loss = -probability * log sigmoid(beta * (x - y) - target_margin)
    - (1 - probability) * log sigmoid(beta * (y - x) - target_margin)`

    Source: Meng et al. 2024, eq. 6, averaged over the label.

    Peers: TRL's `CPOTrainer` with `simpo` and `cpo_alpha` 0, the same, where `probability = 1`.

    Attributes:
        beta: score of a nat a token, > 0; 2.0 to 10 in the paper.
        target_margin: by which the better one shall win, >= 0; the paper's gamma.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 2.0
    target_margin: float = 0.5

    requires_reference = False
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.target_margin", self.target_margin, least=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * logprob for logprob in pairs.mean_logprobs)
        as_labelled = logsigmoid(chosen - rejected - self.target_margin)
        other_way = logsigmoid(rejected - chosen - self.target_margin)
        losses = -pairs.probability * as_labelled - (1.0 - pairs.probability) * other_way
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
