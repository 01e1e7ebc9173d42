"""GSPO: one ratio for a whole response."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.policy.loss import (
    ClippedLoss,
    PolicyLoss,
    PolicyTokens,
    bounded_exp,
    clipped,
)
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class GSPO(PolicyLoss):
    """PPO's clipping of the ratio of a whole response, which is what the reward judges.

    With `A` the token's advantage and `ratio = exp(mean of logprobs - old_logprobs over the tokens
    of the response)`, or of their sum without `per_token`, the exponent cut to [-20, 20]:

    `loss = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range_high))`, at each token
    of the response

    Source: Zheng et al. 2025 (GSPO), eq. 5 and 7; average it by `SequenceMean`, as the paper does.
    The summed form is that of Ahmadian et al. 2024 with PPO's clipping.

    Peers: TRL, the same by `importance_sampling_level="sequence"`; its RLOO has the sum. verl's
    gives each token its own share of the gradient (GSPO-token), which is the same where a
    response's advantages are.

    Attributes:
        clip_range: how far the ratio may fall before that stops counting, > 0; 3e-4 (paper), for a
            mean over many tokens.
        clip_range_high: how far it may rise, > 0; 4e-4 (paper).
        per_token: the mean of log-ratios over tokens; false: their sum.

    Raises:
        ConfigError: if a value is out of its range.
    """

    clip_range: float = 3e-4
    clip_range_high: float = 4e-4
    per_token: bool = True

    def __post_init__(self) -> None:
        require("model.update.policy_loss.clip_range", self.clip_range, above=0)
        require("model.update.policy_loss.clip_range_high", self.clip_range_high, above=0)

    def compare(self, tokens: PolicyTokens) -> ClippedLoss:
        """Clip each response's ratio, see the class."""
        mask = tokens.response_mask
        log_ratios = tokens.log_ratios.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True)  # [B, 1]
        if self.per_token:
            log_ratios = log_ratios / mask.sum(dim=1, keepdim=True).clamp(min=1)
        ratios = bounded_exp(log_ratios).expand_as(tokens.logprobs)
        return clipped(ratios, tokens.advantages, self.clip_range, self.clip_range_high)
