"""Leave one out: the other responses to a prompt are each one's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.advantage.estimator import Advantages, RewardedTokens, spread
from lit_rlhf.objectives.advantage.groups import GroupEstimator, Groups


@dataclass(frozen=True)
class RLOO(GroupEstimator):
    """REINFORCE with the mean of the other samples of the same prompt as baseline.

    With `R[i]` the sum of the rewards of response `i`, in a group of `G` responses:

    `advantages[i, :] = R[i] - (sum(R of the group) - R[i]) / (G - 1)`

    Source: Kool et al. 2019; Ahmadian et al. 2024 ("Back to Basics"). A response without tokens is
    in no baseline; one that is left alone by this has the advantage 0.

    Peers: TRL's RLOO, the same. Its policy loss clips the ratio of whole responses: `GSPO` with
    `per_token` false and both clip ranges 0.2.

    Attributes:
        k: samples of each prompt, >= 2.

    Raises:
        ConfigError: if `k` is below 2.
    """

    k: int = 2

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Compare each response with the others of its group, see the class."""
        groups = Groups.of(tokens)
        baselines = (groups.sums - groups.totals) / (groups.sizes - 1).clamp(min=1)
        return spread((groups.totals - baselines) * (groups.sizes > 1), tokens)
