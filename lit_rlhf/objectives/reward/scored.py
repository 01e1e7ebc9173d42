"""What a reward model's loss reads and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.objectives.precision import at_least_float32


class ScoredResponses(NamedTuple):
    """Scores of the distinct responses of some prompts, and what people said of them.

    For a loss that reads steps, there is a score and a label for each step: `scores` is `[M]`, and
    `chosen` and `rejected` are the step's response, twice.

    Attributes:
        scores: `[N]` raw scores of the reward model.
        group: `[N]` int64, the prompt that a response belongs to.
        chosen: `[M]` int64, the response named first in each judged pair.
        rejected: `[M]` int64, the other one.
        probability: `[M]` in [0, 1], the share of judgments for the first.
        weight: `[M]` >= 0, how much a pair counts.
        ratings: `[N]` mean ratings, NaN where a response has none.
        margin: `[M]`, or 0 for all: by how much the first is to score more.
    """

    scores: Tensor
    group: Tensor
    chosen: Tensor
    rejected: Tensor
    probability: Tensor
    weight: Tensor
    ratings: Tensor
    margin: Tensor = torch.zeros(())

    @classmethod
    def of(cls, batch: ComparisonBatch, scores: Tensor) -> ScoredResponses:
        """Put the scores `[N]` of a batch's responses beside what people said."""
        return cls(
            scores=at_least_float32(scores),
            group=batch.group,
            chosen=batch.chosen,
            rejected=batch.rejected,
            probability=batch.probability,
            weight=batch.weight,
            ratings=batch.ratings,
            margin=batch.margin,
        )


class WeightedLosses(NamedTuple):
    """Losses and how much each counts; the caller averages them over all processes.

    Attributes:
        losses: `[E]` float32 (float64 for float64): one a pair, a prompt or a response.
        weight: `[E]` >= 0.
    """

    losses: Tensor
    weight: Tensor


class RewardLoss(ABC):
    """Compares scores with what people said. Frozen dataclasses below it are chosen by name."""

    @property
    def reads_steps(self) -> bool:
        """Whether it reads a score for each step of an answer, in place of one a response."""
        return False

    @property
    def reads_margins(self) -> bool:
        """Whether the margin of a pair is taken off the difference of its scores."""
        return False

    @property
    def needs_whole_rankings(self) -> bool:
        """Whether every pair of a prompt's responses must be judged."""
        return False

    @abstractmethod
    def __call__(self, scored: ScoredResponses) -> WeightedLosses:
        """Compute the losses of a batch.

        Args:
            scored: `N` responses and `M` judged pairs of them.

        Returns:
            Losses, to be averaged by their weights.

        Raises:
            ConfigError: the data do not say what the loss needs.
        """
