"""CISPO: clip the weight of a token and not its gradient."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.policy.loss import ClippedLoss, PolicyLoss, PolicyTokens, bounded_exp
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class CISPO(PolicyLoss):
    """REINFORCE weighted by a bounded ratio: every token keeps a gradient, however far it moved.

    With `A` the token's advantage and `weight = min(exp(logprobs - old_logprobs), cap)` without
    gradient:

    `loss = -weight * A * logprobs`

    Source: MiniMax 2025 (MiniMax-M1), eq. 4 and 5, without a lower bound, as they ran it.

    Peers: TRL, the same, with `epsilon_high` for `cap`; verl cuts the weight at both ends.

    Attributes:
        cap: largest weight, >= 1; 5 as Khatri et al. 2025 (ScaleRL) and TRL recommend.

    Raises:
        ConfigError: if `cap` is below 1.
    """

    cap: float = 5.0

    def __post_init__(self) -> None:
        require("model.update.policy_loss.cap", self.cap, least=1)

    def compare(self, tokens: PolicyTokens) -> ClippedLoss:
        """Weigh each token's log-probability, see the class."""
        ratios = bounded_exp(tokens.log_ratios.detach())
        losses = -ratios.clamp(max=self.cap) * tokens.advantages * tokens.logprobs
        return ClippedLoss(losses, ratios > self.cap)
