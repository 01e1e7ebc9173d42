"""What an advantage estimator reads and returns, and what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lit_rlhf.objectives.masking import Moments, masked_moments
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape


class RewardedTokens(NamedTuple):
    """The responses of a rollout with their rewards; constants.

    Attributes:
        token_rewards: `[B, T]` score and KL penalty, see `token_rewards`.
        response_mask: `[B, T]` bool, True at response tokens.
        group_ids: `[B]` int64, equal for samples of the same prompt.
        values: `[B, T]` the critic's estimate before each token, None without a critic.
        greedy_scores: `[B]` the score of the likeliest response to each row's prompt, None where
            the estimator reads none.
        moments: of `totals` over the responses of all processes; None: these rows are all.
    """

    token_rewards: Tensor
    response_mask: Tensor
    group_ids: Tensor
    values: Tensor | None = None
    greedy_scores: Tensor | None = None
    moments: Moments | None = None

    @property
    def counts(self) -> Tensor:
        """Which responses have a token that counts: `[B]` bool. The others are in no baseline."""
        return self.response_mask.any(dim=1)

    @property
    def totals(self) -> Tensor:
        """The summed rewards of each response: `[B]`."""
        return self.token_rewards.sum(dim=1)

    def own_moments(self) -> Moments:
        """Return the moments of `totals` over the responses of this process."""
        return masked_moments(self.totals, self.counts)

    def cleaned(self) -> RewardedTokens:
        """Return the same in float32 (float64 for float64), with zero where masked."""

        def constant(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else at_least_float32(tensor.detach())

        rewards = at_least_float32(self.token_rewards.detach())
        return self._replace(
            token_rewards=rewards.masked_fill(~self.response_mask, 0.0),
            values=constant(self.values),
            greedy_scores=constant(self.greedy_scores),
        )


class Advantages(NamedTuple):
    """What a policy update and a critic learn from; constants, zero where masked.

    Attributes:
        advantages: `[B, T]`, not whitened.
        returns: `[B, T]`, the critic's targets, or None from an estimator without critic.
    """

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(ABC):
    """Turns the rewards of a rollout into advantages.

    One of your own says `requires_values`, `samples_per_prompt` and `estimate`; see
    docs/guides/add-a-loss.md.
    """

    @property
    @abstractmethod
    def requires_values(self) -> bool:
        """Whether a critic is needed; without one no critic is built."""

    @property
    @abstractmethod
    def samples_per_prompt(self) -> int:
        """How many responses the rollout draws for each prompt."""

    @property
    def compares_samples(self) -> bool:
        """Whether samples that all score alike have the advantage zero."""
        return False

    @property
    def requires_greedy(self) -> bool:
        """Whether the likeliest response to each prompt is drawn and scored, too."""
        return False

    @abstractmethod
    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Estimate advantages `[B, T]` from rewards that are zero where masked, in float32."""

    def __call__(self, tokens: RewardedTokens) -> Advantages:
        """Check the rollout, and estimate the advantage of every response token.

        Args:
            tokens: `B` responses.

        Returns:
            Advantages and returns in float32 (float64 for float64), without gradient, zero where
            masked.

        Raises:
            ValueError: shapes do not fit, or something is missing that is read.
            ConfigError: a group has a single member, where members are compared.
        """
        rewards, mask, groups = tokens.token_rewards, tokens.response_mask, tokens.group_ids
        require_same_shape(token_rewards=rewards, response_mask=mask, values=tokens.values)
        require_same_shape(group_ids=groups, rows=mask[:, :0].sum(1), greedy=tokens.greedy_scores)
        name = type(self).__name__
        if self.requires_values and tokens.values is None:
            raise ValueError(f"{name} needs the critic's values, got None")
        if self.requires_greedy and tokens.greedy_scores is None:
            raise ValueError(f"{name} needs the scores of greedy responses, got None")
        advantages, returns = self.estimate(tokens.cleaned())
        if returns is not None:
            returns = returns.masked_fill(~mask, 0.0)
        return Advantages(advantages.masked_fill(~mask, 0.0), returns)


def spread(advantages: Tensor, tokens: RewardedTokens) -> Advantages:
    """Give all tokens of a response its advantage `[B]`; there is no critic."""
    return Advantages(advantages[:, None].expand(tokens.response_mask.shape), None)
