"""Regression on ratings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.reward.scored import RewardLoss, ScoredResponses, WeightedLosses
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class RatingRegression(RewardLoss):
    """The score is the mean rating that people gave, in standard units; one loss a response.

    `loss = (score - (rating - mean) / deviation)^2`

    Source: Wang et al. 2024 (HelpSteer2), regression models.

    Peers: TRL has none; transformers' classifier with one label regresses alike.

    Attributes:
        mean: of the ratings, taken off, so that scores start where ratings are.
        deviation: of the ratings, > 0; score is counted in it.

    Raises:
        ConfigError: if `deviation` is out of its range.
    """

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        require("model.loss.mean", self.mean)
        require("model.loss.deviation", self.deviation, above=0)

    def __call__(self, scored: ScoredResponses) -> WeightedLosses:
        """Compute the loss of each rated response, see the class."""
        is_rated = ~scored.ratings.isnan()
        if len(scored.chosen) and not is_rated.any():
            raise ConfigError(
                "model.loss RatingRegression needs rows with 'ratings' (docs/data.md), and the "
                "responses of a batch have none: rankings say an order alone. Choose "
                "BradleyTerryLoss or PlackettLuceLoss"
            )
        weight = _weights(scored)[is_rated]
        target = (scored.ratings[is_rated] - self.mean) / self.deviation
        return WeightedLosses((scored.scores[is_rated] - target).square(), weight)


def _weights(scored: ScoredResponses) -> Tensor:
    """Return the mean weight of each response's pairs, `[N]`; 0 where it is in none."""
    total = scored.scores.new_zeros(len(scored.scores))
    count = total.clone()
    for side in (scored.chosen, scored.rejected):
        total = total.index_add(0, side, scored.weight.to(total.dtype))
        count = count.index_add(0, side, scored.weight.new_ones(len(side)).to(total.dtype))
    return total / count.clamp(min=1.0)
