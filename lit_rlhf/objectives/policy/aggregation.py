"""From one loss a token to one of a minibatch: who counts as much as whom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require


class LossAggregation(ABC):
    """A weighted sum over tokens, divided by a size that adds up over rows and processes."""

    @abstractmethod
    def divisors(self, response_mask: Tensor) -> Tensor:
        """Return what the losses of each response are divided by, `[B, 1]`, at least 1."""

    @abstractmethod
    def size(self, response_mask: Tensor) -> Tensor:
        """Return what the sum over all these rows is divided by: a scalar."""

    def weights(self, response_mask: Tensor) -> Tensor:
        """Return the weight of each token in the sum: `[B, T]` float32, zero where masked."""
        return response_mask / self.divisors(response_mask)

    def __call__(self, losses: Tensor, response_mask: Tensor) -> Tensor:
        """Average the losses of rows that are all there is; of no token, 0.

        Args:
            losses: `[B, T]`.
            response_mask: `[B, T]` bool, True at response tokens.

        Raises:
            ValueError: if the shapes differ.
        """
        require_same_shape(losses=losses, response_mask=response_mask)
        losses = at_least_float32(losses).masked_fill(~response_mask, 0.0)
        total = (losses / self.divisors(response_mask)).sum()
        return total / self.size(response_mask).clamp(min=1)


@dataclass(frozen=True)
class TokenMean(LossAggregation):
    """Every token of the minibatch counts alike, and a long response more than a short one.

    `loss = sum(losses of all tokens) / number of tokens`, over all processes

    Source: OpenAI's lm-human-preferences (2019); Yu et al. 2025 (DAPO), "token-level loss".

    Peers: TRL's `dapo`; its `bnpo` takes the mean of each micro-batch apart. verl's `token-mean`.
    """

    def divisors(self, response_mask: Tensor) -> Tensor:
        """Return 1 for each response."""
        return response_mask.new_ones(len(response_mask), 1, dtype=torch.long)

    def size(self, response_mask: Tensor) -> Tensor:
        """Return the number of tokens."""
        return response_mask.sum()


@dataclass(frozen=True)
class SequenceMean(LossAggregation):
    """Every response counts alike, so that a token of a long one counts less.

    `loss = sum over responses(mean(losses of its tokens)) / number of responses` that have tokens,
    over all processes

    Source: Shao et al. 2024 (GRPO), eq. 3.

    Peers: TRL's `grpo` and verl's `seq-mean-token-mean`, which also count responses without tokens.
    """

    def divisors(self, response_mask: Tensor) -> Tensor:
        """Return the length of each response."""
        return response_mask.sum(dim=1, keepdim=True).clamp(min=1)

    def size(self, response_mask: Tensor) -> Tensor:
        """Return the number of responses."""
        return response_mask.any(dim=1).sum()


@dataclass(frozen=True)
class ConstantLength(LossAggregation):
    """Every token counts alike, whatever the lengths in its minibatch are.

    `loss = sum(losses of all tokens) / (length * number of responses)` that have tokens, over all
    processes

    Source: Liu et al. 2025 (Dr. GRPO), whose `length` is the most tokens of a response.

    Peers: TRL's `dr_grpo` and verl's `seq-mean-token-sum-norm`, which also count responses without
    tokens.

    Attributes:
        length: tokens, > 0, such as `model.sampling.max_new_tokens`.

    Raises:
        ConfigError: if `length` is not positive.
    """

    length: int

    def __post_init__(self) -> None:
        require("model.update.aggregation.length", self.length, least=1)

    def divisors(self, response_mask: Tensor) -> Tensor:
        """Return the constant for each response."""
        return response_mask.new_full((len(response_mask), 1), self.length, dtype=torch.long)

    def size(self, response_mask: Tensor) -> Tensor:
        """Return the number of responses."""
        return response_mask.any(dim=1).sum()
