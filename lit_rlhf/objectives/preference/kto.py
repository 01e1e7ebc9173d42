"""Kahneman-Tversky optimisation: responses with a label each, no pairs."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class KTO(PreferenceLoss):
    """Gains and losses against how far the policy has moved in general.

    With `x` the log-ratio of a labelled response, `z = max(0, mean log-ratio of responses to other
    prompts)` over all processes, and `probability` 1 for good and 0 for bad:

    `loss = probability * good_weight * sigmoid(beta * (z - x))
    + (1 - probability) * bad_weight * sigmoid(beta * (x - z))`

    Source: Ethayarajh et al. 2024; `z` has no gradient.

    The rewards are `beta * x` and, in place of another response's, `beta * z`: a positive margin
    takes a response for a good one.

    Peers: TRL's `KTOTrainer`, the same; there `z` comes from a response of the same batch, here of
    the next row of the data, so that a precomputed reference serves.

    Attributes:
        beta: how strongly the reference holds the policy, > 0.
        good_weight: of good responses, > 0; the weighted numbers of good and bad ones shall be
            within 1 to 4/3 (paper).
        bad_weight: of bad responses, > 0; TRL's `undesirable_weight`.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0

    requires_reference = True
    takes_soft_labels = True
    is_unpaired = True

    def __post_init__(self) -> None:
        for name in ("beta", "good_weight", "bad_weight"):
            require(f"model.loss.{name}", getattr(self, name), above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each labelled response, see the class."""
        x, _ = pairs.log_ratios
        assert pairs.reference_point is not None, "the caller averages it over all processes"
        z = pairs.reference_point.detach().clamp(min=0.0)
        gain = self.beta * (x - z)
        if_good = self.good_weight * (-gain).sigmoid()
        if_bad = self.bad_weight * gain.sigmoid()
        return PreferenceOutput(
            losses=pairs.probability * if_good + (1.0 - pairs.probability) * if_bad,
            chosen_rewards=self.beta * x.detach(),
            rejected_rewards=self.beta * z.expand_as(x),
        )
