"""GAE whose lambda grows with the response."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.advantage.estimator import AdvantageEstimator, Advantages, RewardedTokens
from lit_rlhf.objectives.advantage.gae import decoupled
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class LengthAdaptiveGAE(AdvantageEstimator):
    """GAE that looks further ahead in longer responses.

    With `delta` as in `GAE` and `n` the tokens of the response:

    `advantages[t] = delta[t] + gamma * max(0, 1 - 1 / (alpha * n)) * advantages[t + 1]`;
    `returns[t] = values[t] +` the same with `critic_lambda`

    Source: Yue et al. 2025 (VAPO): the weights of later errors add up to about
    `alpha * n`. Up to `1 / alpha` tokens that is one error alone; the paper does not say what
    becomes of them, and its lambda would be negative.

    Peers: NeMo-RL has it, TRL has not.

    Attributes:
        gamma: discount a token, in [0, 1].
        alpha: the share of a response that an error reaches back over, in (0, 1]; 0.05 (paper).
        critic_lambda: of the critic's targets; 1 (paper).

    Raises:
        ConfigError: if a value is out of its range.
    """

    gamma: float = 1.0
    alpha: float = 0.05
    critic_lambda: float = 1.0

    requires_values = True
    samples_per_prompt = 1

    def __post_init__(self) -> None:
        require("model.advantage.gamma", self.gamma, least=0, most=1)
        require("model.advantage.alpha", self.alpha, above=0, most=1)
        require("model.advantage.critic_lambda", self.critic_lambda, least=0, most=1)

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Run GAE with a lambda for each response, see the class."""
        lengths = tokens.response_mask.sum(dim=1).clamp(min=1).to(tokens.token_rewards.dtype)
        lambdas = (1.0 - 1.0 / (self.alpha * lengths)).clamp(min=0.0)
        return decoupled(tokens, self.gamma, lambdas, self.critic_lambda)
