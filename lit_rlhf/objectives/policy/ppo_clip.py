"""PPO's clipped surrogate, with a range of its own for gains, and a bound on losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_rlhf.objectives.policy.loss import (
    ClippedLoss,
    PolicyLoss,
    PolicyTokens,
    bounded_exp,
    clipped,
)
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class PPOClip(PolicyLoss):
    """PPO: a token's ratio counts until it has left 1 far enough in the direction of its advantage.

    With `A` the token's advantage and `ratio = exp(logprobs - old_logprobs)`, its exponent cut to
    [-20, 20]:

    `loss = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range_high))`; with
    `dual_clip`, where `A < 0`, at most `-A * dual_clip`

    Source: Schulman et al. 2017, eq. 7 (negated); the higher upper range is Yu et al. 2025 (DAPO),
    "clip-higher"; the second clip Ye et al. 2020 (dual-clip PPO), eq. 5.

    Peers: TRL, the same; its `delta` is the dual clip. verl's dual clip is on, at 3.

    Attributes:
        clip_range: how far the ratio may fall before that stops counting, > 0; 0.2 (PPO).
        clip_range_high: how far it may rise, > 0; DAPO has 0.28, which lets rare tokens become
            likely. Null: as `clip_range`.
        dual_clip: the largest ratio that counts where the advantage is negative, > 1; 3 (Ye et
            al.). Null: none.

    Raises:
        ConfigError: if a value is out of its range.
    """

    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        key = "model.update.policy_loss"
        require(f"{key}.clip_range", self.clip_range, above=0)
        require(f"{key}.clip_range_high", self.clip_range_high, above=0, is_optional=True)
        require(f"{key}.dual_clip", self.dual_clip, above=1, is_optional=True)

    def compare(self, tokens: PolicyTokens) -> ClippedLoss:
        """Clip each token's ratio, see the class."""
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        ratios, advantages = bounded_exp(tokens.log_ratios), tokens.advantages
        output = clipped(ratios, advantages, self.clip_range, high)
        if self.dual_clip is None:
            return output
        limit = -advantages * self.dual_clip
        is_beyond = (advantages < 0) & (output.losses > limit)
        losses = torch.where(is_beyond, limit, output.losses)
        return ClippedLoss(losses, output.is_clipped | is_beyond)
