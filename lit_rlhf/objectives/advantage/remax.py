"""ReMax: the likeliest response to a prompt is the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.advantage.estimator import AdvantageEstimator, Advantages, RewardedTokens
from lit_rlhf.objectives.advantage.reinforce import rewards_to_come
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class ReMax(AdvantageEstimator):
    """REINFORCE with the score of the greedy response to the same prompt as baseline.

    `advantages[t] = sum(token_rewards[t:]) - greedy_scores`, the greedy response being drawn at
    temperature 0 and scored by the same rules, without a KL penalty.

    Source: Li et al. 2023 (ReMax), algorithm 1, and its code for the KL penalty.

    Peers: verl, the same. A rollout draws one response more for each prompt.

    Attributes:
        k: samples of each prompt, all with the same baseline.

    Raises:
        ConfigError: if `k` is below 1.
    """

    k: int = 1

    requires_values = False
    requires_greedy = True

    def __post_init__(self) -> None:
        require("model.advantage.k", self.k, least=1)

    @property
    def samples_per_prompt(self) -> int:
        """`k` responses a prompt."""
        return self.k

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Compare the rewards from each token on with the greedy score, see the class."""
        assert tokens.greedy_scores is not None  # checked by the caller
        return Advantages(rewards_to_come(tokens) - tokens.greedy_scores[:, None], None)
