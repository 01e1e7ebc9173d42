"""Group-relative advantages: each response against the mean of its prompt's responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.advantage.estimator import Advantages, RewardedTokens, spread
from lit_rlhf.objectives.advantage.groups import GroupEstimator, Groups

Scale = Literal["group", "batch", "none"]
# Guards the division by the deviation of a group whose responses score the same. Source: TRL.
_SMALLEST_DEVIATION = 1e-4


@dataclass(frozen=True)
class GRPO(GroupEstimator):
    """The distance from the group's mean, in deviations of the group, of the batch, or plain.

    With `R[i]` the sum of the rewards of response `i`, and `scale` 1 if it is "none":

    `advantages[i, :] = (R[i] - mean(R of the group)) / (std(R of the group or batch) + 1e-4)`

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1; by the batch, over all processes, Liu et
    al. 2025 ("Tricks or traps"); undivided Liu et al. 2025 ("Dr. GRPO"). A response without tokens
    is in no baseline; one that is left alone by this has the advantage 0.

    Peers: TRL, the same, with its 1e-4 and Bessel's correction; 1e-6 in verl, 1e-9 in OpenRLHF.

    Attributes:
        k: samples of each prompt, >= 2.
        scale: "group" divides by the group's deviation, so that a prompt whose responses hardly
            differ counts as much as one whose responses differ a lot; "batch" by the deviation of
            all responses of the rollout; "none" by nothing.

    Raises:
        ConfigError: if `k` is below 2, or `scale` is none of these.
    """

    k: int = 8
    scale: Scale = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in get_args(Scale):
            raise ConfigError(
                f"advantage.scale is {self.scale!r}; choose group (formerly true), batch or none "
                "(formerly false)"
            )

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Compare each response with the mean of its group, see the class."""
        groups = Groups.of(tokens)
        advantages = groups.centered
        if self.scale != "none":
            deviation = _of_batch(tokens) if self.scale == "batch" else _of_group(groups, tokens)
            advantages = advantages / (deviation + _SMALLEST_DEVIATION)
        return spread(advantages, tokens)


def _of_group(groups: Groups, tokens: RewardedTokens) -> Tensor:
    squares = groups.sum_of_group(groups.centered.square() * tokens.counts)
    return (squares / (groups.sizes - 1).clamp(min=1)).sqrt()  # [B]


def _of_batch(tokens: RewardedTokens) -> Tensor:
    moments = tokens.moments or tokens.own_moments()
    squares = moments.variance * moments.count / (moments.count - 1).clamp(min=1)
    return torch.sqrt(squares).to(tokens.token_rewards.dtype)
