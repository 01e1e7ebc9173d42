"""Advantages by a critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.objectives.advantage.estimator import AdvantageEstimator, Advantages, RewardedTokens
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class GAE(AdvantageEstimator):
    """Generalised advantage estimation: how much better a token was than a critic expected.

    With `delta[t] = token_rewards[t] + gamma * values[t + 1] - values[t]`, where `t + 1` is the
    next token that counts and all is 0 behind the last one:

    `advantages[t] = delta[t] + gamma * gae_lambda * advantages[t + 1]`;
    `returns[t] = values[t] +` the same with `critic_lambda`

    Source: Schulman et al. 2016, eq. 16; the second lambda is the decoupled GAE of Yue et al.
    2025 (VAPO).

    Peers: verl skips masked tokens in the same way; TRL's PPO has no second lambda.

    Attributes:
        gamma: discount a token, in [0, 1]; 1 as OpenAI's 2019 code.
        gae_lambda: 0 gives the one-step error, 1 Monte-Carlo returns minus values; 0.95 as
            OpenAI's 2019 code.
        critic_lambda: of the critic's targets; 1 keeps a late reward from decaying on its way to
            the first tokens of a long response. Null: as `gae_lambda`.

    Raises:
        ConfigError: if a value is outside [0, 1].
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95
    critic_lambda: float | None = None

    requires_values = True
    samples_per_prompt = 1

    def __post_init__(self) -> None:
        require("model.advantage.gamma", self.gamma, least=0, most=1)
        require("model.advantage.gae_lambda", self.gae_lambda, least=0, most=1)
        name = "model.advantage.critic_lambda"
        require(name, self.critic_lambda, least=0, most=1, is_optional=True)

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Run the recursion from the last token to the first, see the class."""
        lambdas = torch.full_like(tokens.totals, self.gae_lambda)
        return decoupled(tokens, self.gamma, lambdas, self.critic_lambda)


def decoupled(
    tokens: RewardedTokens, gamma: float, lambdas: Tensor, critic_lambda: float | None
) -> Advantages:
    """Return advantages by `lambdas` `[B]`, one a response, and returns by the critic's lambda.

    Args:
        tokens: `B` responses with values.
        gamma: discount a token.
        lambdas: of the advantages.
        critic_lambda: of the returns, None for the same.
    """
    advantages = discounted_errors(tokens, gamma, lambdas)
    for_critic = advantages
    if critic_lambda is not None:
        for_critic = discounted_errors(tokens, gamma, torch.full_like(lambdas, critic_lambda))
    assert tokens.values is not None  # the caller requires them
    return Advantages(advantages, for_critic + tokens.values)


def discounted_errors(tokens: RewardedTokens, gamma: float, lambdas: Tensor) -> Tensor:
    """Sum up each token's error and those behind it, discounted: `[B, T]`, zero where masked."""
    rewards, values = tokens.token_rewards, tokens.values
    assert values is not None  # the caller requires them
    next_value = next_advantage = torch.zeros_like(lambdas)  # [B]
    columns = []
    for t in reversed(range(rewards.shape[1])):
        counts = tokens.response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lambdas * next_advantage
        columns.append(advantage.masked_fill(~counts, 0.0))
        next_value = torch.where(counts, values[:, t], next_value)
        next_advantage = torch.where(counts, advantage, next_advantage)
    return torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
