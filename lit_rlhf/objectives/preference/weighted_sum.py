"""A weighted sum of losses: MPO, RPO, or what you make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class WeightedSum(PreferenceLoss):
    """Several losses on the same pairs; rewards and margin are those of the first.

    `loss = sum(weights[i] * losses[i])`

    Source: Wang et al. 2024 (MPO): DPO, BCO and ChosenNLL with weights 0.8, 0.2 and 1; Pang et al.
    2024 (RPO), eq. 1: DPO and ChosenNLL with weights 1 and 1.

    Peers: TRL `loss_type` and `loss_weights` as lists, the same.

    Attributes:
        losses: two or more.
        weights: one for each, > 0.

    Raises:
        ConfigError: if there are not as many weights as losses, a weight is out of its range, or
            one loss reads pairs and another labelled responses.
    """

    losses: Sequence[PreferenceLoss]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("losses", "weights"):  # lists from YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.losses) < 2 or len(self.losses) != len(self.weights):
            raise ConfigError(
                f"model.loss: {len(self.losses)} losses and {len(self.weights)} weights; there "
                "must be two losses or more, and one weight for each"
            )
        for i, weight in enumerate(self.weights):
            require(f"model.loss.weights[{i}]", weight, above=0)
        if len({loss.is_unpaired for loss in self.losses}) > 1:
            names = ", ".join(type(loss).__name__ for loss in self.losses)
            raise ConfigError(
                f"model.loss.losses {names}: some read pairs, others labelled responses, and a "
                "batch has only one of them"
            )

    @property
    def requires_reference(self) -> bool:
        """Whether one of the losses does."""
        return any(loss.requires_reference for loss in self.losses)

    @property
    def takes_soft_labels(self) -> bool:
        """Whether all of the losses do."""
        return all(loss.takes_soft_labels for loss in self.losses)

    @property
    def is_unpaired(self) -> bool:
        """Whether the losses read labelled responses."""
        return self.losses[0].is_unpaired

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        outputs = [loss.compare(pairs) for loss in self.losses]
        terms = [w * output.losses for w, output in zip(self.weights, outputs, strict=True)]
        return outputs[0]._replace(losses=sum(terms[1:], terms[0]))
