"""What a preference loss reads and returns, and what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.objectives.preference.divergence import Divergence


class PreferencePairs(NamedTuple):
    """Judged pairs: log-probabilities are sums over the tokens of a response.

    For a loss that reads labelled responses (`is_unpaired`), the first of a pair is the labelled
    one and the other a response that somebody gave to another prompt.

    Attributes:
        policy_chosen: `[M]` log-probability of the response named first, under the policy.
        policy_rejected: `[M]` the same of the other response.
        reference_chosen: `[M]` of the first under the reference; None where the loss reads none.
        reference_rejected: `[M]` of the other under the reference, or None.
        chosen_lengths: `[M]` int64, tokens of the first that count.
        rejected_lengths: `[M]` int64, of the other.
        probability: `[M]` in [0, 1], the share of judgments for the first; of a labelled response
            the share that calls it good.
        weight: `[M]` >= 0, how much the pair counts; the caller averages the losses by it.
        reference_point: `[]` for labelled responses, the mean log-ratio of the unrelated ones over
            all processes, without gradient; else None.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    probability: Tensor
    weight: Tensor
    reference_point: Tensor | None = None

    @classmethod
    def of(
        cls, batch: ComparisonBatch, policy: Tensor, reference: Tensor | None
    ) -> PreferencePairs:
        """Make pairs of the log-probabilities `[N]` of a batch's responses."""
        chosen, rejected = batch.chosen, batch.rejected
        lengths = batch.rows.response_mask.sum(1)  # [N]
        return cls(
            policy_chosen=policy[chosen],
            policy_rejected=policy[rejected],
            reference_chosen=None if reference is None else reference[chosen],
            reference_rejected=None if reference is None else reference[rejected],
            chosen_lengths=lengths[chosen],
            rejected_lengths=lengths[rejected],
            probability=batch.probability,
            weight=batch.weight,
        )

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """How much likelier the policy finds each response than the reference does: two `[M]`."""
        assert self.reference_chosen is not None, "the loss must say requires_reference"
        assert self.reference_rejected is not None
        return (
            self.policy_chosen - self.reference_chosen,
            self.policy_rejected - self.reference_rejected,
        )

    def scores(self, divergence: Divergence, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """Return what a divergence makes of the log-ratios, two `[M]`; per token, if so asked."""
        chosen, rejected = (divergence.score(ratio) for ratio in self.log_ratios)
        if per_token:
            return chosen / at_least_one(self.chosen_lengths), rejected / at_least_one(
                self.rejected_lengths
            )
        return chosen, rejected

    @property
    def mean_logprobs(self) -> tuple[Tensor, Tensor]:
        """Log-probability a token of each response under the policy: two `[M]`, 0 of no token."""
        return (
            self.policy_chosen / at_least_one(self.chosen_lengths),
            self.policy_rejected / at_least_one(self.rejected_lengths),
        )

    def decided(self) -> PreferencePairs:
        """Return the pairs as most people see them: certain, and ties without weight."""
        return self._replace(
            probability=(self.probability >= 0.5).to(self.probability.dtype),
            weight=self.weight * (self.probability != 0.5),
        )

    def _in_float32(self) -> PreferencePairs:
        widened = {
            name: at_least_float32(value)
            for name, value in self._asdict().items()
            if value is not None and value.is_floating_point()
        }
        return self._replace(**widened)


def at_least_one(lengths: Tensor) -> Tensor:
    """Return lengths to divide by: a response without tokens has log-probability 0, and mean 0."""
    return lengths.clamp(min=1)


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
    """Compares the log-probabilities of two responses, under the policy and maybe a reference.

    A loss of your own says `requires_reference` and `compare`; see docs/guides/add-a-loss.md.
    """

    @property
    @abstractmethod
    def requires_reference(self) -> bool:
        """Whether the reference's log-probabilities are read; if not, none are computed."""

    @property
    def takes_soft_labels(self) -> bool:
        """Whether it has a meaning for a `probability` other than 1."""
        return False

    @property
    def is_unpaired(self) -> bool:
        """Whether it reads responses with a label each, in place of pairs."""
        return False

    @abstractmethod
    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair: `M` pairs, of equal shapes, in float32 or float64."""

    def __call__(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Check the pairs, and compute the loss of each.

        Args:
            pairs: `M` of them.

        Returns:
            Losses and implicit rewards.

        Raises:
            ValueError: if the shapes differ.
            ConfigError: if a label is soft, and the loss has no meaning for it.
        """
        fields = pairs._asdict()
        fields.pop("reference_point")
        require_same_shape(**fields)
        if not self.takes_soft_labels:
            self._refuse_soft_labels(pairs.probability)
        return self.compare(pairs._in_float32())

    def _refuse_soft_labels(self, probability: Tensor) -> None:
        num_soft = int((probability != 1).sum())
        if num_soft:
            raise ConfigError(
                f"model.loss {type(self).__name__} has no probability that one response is better "
                f"than another, so it learns from certain labels alone; {num_soft} of "
                f"{len(probability)} pairs of a batch have another probability than 1. Set "
                "data.aggregation to Majority, or choose a loss that takes soft labels (DPO, IPO, "
                "RobustDPO, EXO, SimPO, CPO, ORPO)"
            )
