"""What a preference loss returns, and what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.precision import require_same_shape
from lit_rlhf.objectives.preference.pairs import PreferencePairs


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
        return self.compare(pairs.in_float32())

    def _refuse_soft_labels(self, probability: Tensor) -> None:
        num_soft = int((probability != 1).sum())
        if num_soft:
            pairs = f"{num_soft} of {len(probability)} pairs of a batch"
            raise ConfigError(soft_labels_refused(type(self).__name__, pairs))


def soft_labels_refused(loss: str, pairs: str) -> str:
    """Return the message for soft labels, and a loss that has no meaning for them.

    Args:
        loss: its name.
        pairs: how many have a soft label, such as "2 of 8 pairs of a batch".
    """
    return (
        f"model.loss {loss} has no probability that one response is better than another, so it "
        f"learns from certain labels alone; {pairs} have another probability than 1. Set "
        "data.aggregation to Majority, or choose a loss that takes soft labels (DPO, IPO, "
        "RobustDPO, EXO, SimPO, CPO, ORPO)"
    )
