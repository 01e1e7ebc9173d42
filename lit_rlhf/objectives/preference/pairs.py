"""What a preference loss reads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.objectives.precision import at_least_float32
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

    def in_float32(self) -> PreferencePairs:
        """Return the pairs with half-precision values as float32."""
        widened = {
            name: at_least_float32(value)
            for name, value in self._asdict().items()
            if value is not None and value.is_floating_point()
        }
        return self._replace(**widened)


def at_least_one(lengths: Tensor) -> Tensor:
    """Return lengths to divide by: a response without tokens has log-probability 0, and mean 0."""
    return lengths.clamp(min=1)
