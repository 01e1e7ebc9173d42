"""Losses that train a policy on comparisons directly, without a reward model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require


class PreferenceOutput(NamedTuple):
    """One loss a pair, and the rewards that the policy implies, for logging.

    Attributes:
        losses: `[M]` float32 (float64 for float64).
        chosen_rewards: `[M]`, without gradient.
        rejected_rewards: `[M]`, without gradient.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class PreferenceLoss(ABC):
    """Compares the log-probabilities of two responses under policy and reference."""

    @property
    @abstractmethod
    def requires_reference(self) -> bool:
        """Whether the reference's log-probabilities are read; if not, none are computed."""

    @abstractmethod
    def __call__(
        self,
        policy_chosen: Float[Tensor, " M"],
        policy_rejected: Float[Tensor, " M"],
        reference_chosen: Float[Tensor, " M"],
        reference_rejected: Float[Tensor, " M"],
        probability: Float[Tensor, " M"],
    ) -> PreferenceOutput:
        """Compute the loss of each pair.

        Args:
            policy_chosen: log-probability of the response named first, summed over its
                tokens, under the policy.
            policy_rejected: the same of the other response.
            reference_chosen: of the first under the reference.
            reference_rejected: of the other under the reference.
            probability: share of judgments for the first, in [0, 1].

        Returns:
            Losses and implicit rewards.

        Raises:
            ValueError: if the shapes differ.
        """


@dataclass(frozen=True)
class DPO(PreferenceLoss):
    """Direct preference optimisation on averaged judgments.

    With `x = policy_chosen - reference_chosen`, `y = policy_rejected - reference_rejected`,
    `q = probability * (1 - label_smoothing) + (1 - probability) * label_smoothing`,
    `loss = -q * log sigmoid(beta * (x - y)) - (1 - q) * log sigmoid(-beta * (x - y))`;
    implicit rewards are `beta * x` and `beta * y`.
    Source: Rafailov et al. 2023, eq. 7, which is `probability = 1`; the smoothing is the
    conservative DPO of Mitchell 2023.

    Attributes:
        beta: how strongly the reference holds the policy, > 0; 0.1 by the paper.
        label_smoothing: share of judgments assumed to be the wrong way round, in [0, 0.5).

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    requires_reference = True  # the loss reads log-ratios

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.label_smoothing", self.label_smoothing, least=0, below=0.5)

    def __call__(
        self,
        policy_chosen: Float[Tensor, " M"],
        policy_rejected: Float[Tensor, " M"],
        reference_chosen: Float[Tensor, " M"],
        reference_rejected: Float[Tensor, " M"],
        probability: Float[Tensor, " M"],
    ) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        require_same_shape(
            policy_chosen=policy_chosen,
            policy_rejected=policy_rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
            probability=probability,
        )
        chosen = at_least_float32(policy_chosen) - at_least_float32(reference_chosen)
        rejected = at_least_float32(policy_rejected) - at_least_float32(reference_rejected)
        logit = self.beta * (chosen - rejected)
        smoothing = self.label_smoothing
        believed = probability * (1.0 - smoothing) + (1.0 - probability) * smoothing
        return PreferenceOutput(
            losses=-believed * logsigmoid(logit) - (1.0 - believed) * logsigmoid(-logit),
            chosen_rewards=self.beta * chosen.detach(),
            rejected_rewards=self.beta * rejected.detach(),
        )
