"""DiscoPOP: a loss that a language model found."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.preference.divergence import Divergence, ReverseKL
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class DiscoPOP(PreferenceLoss):
    """A mixture of the logistic and the exponential loss, by the margin itself.

    With `x`, `y` as in `DPO`, `m = beta * (x - y)` and `g = sigmoid(m / temperature)`:

    `loss = -(1 - g) * log sigmoid(m) + g * exp(-m)`

    Source: Lu et al. 2024, eq. 5 (log-ratio modulated loss). It is not convex: at a temperature of
    0.05 the gradient at a margin of 0 points to a small negative one, where a local minimum is.

    Peers: TRL `discopop`, the same; there `exp(-m)` overflows at a margin of -88.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        temperature: how sharply the two are told apart, in (0, 1); 0.05 by the paper.
        divergence: from the reference.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    temperature: float = 0.05
    divergence: Divergence = ReverseKL()

    requires_reference = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.temperature", self.temperature, above=0, below=1)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = (self.beta * score for score in pairs.scores(self.divergence))
        margin = chosen - rejected
        gate = margin / self.temperature
        # In one exponent, which is never above 0 by much: exp(-margin) alone overflows.
        exponential = (logsigmoid(gate) - margin).exp()
        losses = -(-gate).sigmoid() * logsigmoid(margin) + exponential
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
