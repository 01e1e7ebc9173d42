"""Means over batches and processes, and how well predicted preferences agree with people's.

Of a pair there are the predicted probability that its first response is better (of a reward
model: `sigmoid(score difference)`), the share of people who said so, and a weight. No number
depends on which response is first. Sums are kept and added over processes, so that results do
not depend on batches or processes either. Where nothing was counted they are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.ranks import sum_over_ranks


class NamedMeans:
    """Weighted means of values by name, over all processes; sums are float64, on MPS float32."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def update(self, values: Mapping[str, Tensor], weight: Tensor, **own_weights: Tensor) -> None:
        """Add values with a weight of the same shape; every process adds the same names.

        Args:
            values: by name.
            weight: of all values that have no weight of their own; a mask is one, too.
            **own_weights: by name.
        """
        for name, value in values.items():
            exact = torch.float32 if value.device.type == "mps" else torch.float64  # MPS lacks it
            own = own_weights.get(name, weight).to(exact)
            sums = torch.stack([(value.detach().to(exact) * own).sum(), own.sum()])
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def compute(self) -> dict[str, float]:
        """Return the means over all processes and begin again; call it on all of them."""
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        totals, weights = sum_over_ranks(torch.stack(list(sums.values()), 1))
        return dict(zip(sums, (totals / weights).tolist(), strict=True))


def agreement(
    margin: Float[Tensor, " M"], probability_human: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Return 1 where a margin leans to the response that most people took, 1/2 at 0, else 0.

    Its mean by `decided_weight` is the accuracy.

    Args:
        margin: above 0 where the first response is predicted to be better.
        probability_human: share of people who said so.
    """
    predicted = torch.sign(margin) + 0 * margin  # the sign of NaN is 0: keep it NaN
    return (1 + predicted * torch.sign(probability_human - 0.5)) / 2


def decided_weight(
    weight: Float[Tensor, " M"], probability_human: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Return the weights, zero where people are divided evenly: there neither side is right."""
    return weight * (probability_human != 0.5)


class BothOrders(NamedTuple):
    """Pairs both ways round, and where each prediction lies.

    Attributes:
        bins: `[2M]` bin of the predicted probability.
        predicted: `[2M]` predicted probability that the one response is better, then the other.
        human: `[2M]` share of people who said so.
        weight: `[2M]` half of each pair's.
    """

    bins: Int[Tensor, " 2M"]
    predicted: Float[Tensor, " 2M"]
    human: Float[Tensor, " 2M"]
    weight: Float[Tensor, " 2M"]


def both_orders(
    predicted: Float[Tensor, " M"],
    human: Float[Tensor, " M"],
    weight: Float[Tensor, " M"],
    num_bins: int,
) -> BothOrders:
    """Put pairs into bins of equal width, each both ways round, for training and evaluation alike.

    A probability on an edge is in the upper bin. Up to a millionth below counts as on it: so the
    rounding of float32 and of float64 leads to the same bin.
    """
    predicted = torch.cat([predicted, 1 - predicted])
    # The clamp puts a probability of exactly 1 into the last bin.
    bins = ((predicted + 1e-6) * num_bins).long().clamp(0, num_bins - 1)
    return BothOrders(bins, predicted, torch.cat([human, 1 - human]), weight.repeat(2) / 2)


class CalibrationError(Metric):
    """The expected calibration error: how far predicted probabilities are from people's shares.

    `sum_b (w_b / w) |mean predicted_b - mean human_b|` over the bins `b` of the predicted
    probability. Source: Naeini et al. 2015 (ECE), with soft labels.

    Every pair enters both ways round, `(p, h)` and `(1 - p, 1 - h)`, each with half its weight.
    Otherwise a data set that puts the response preferred by people first would look badly
    calibrated whatever the model says: in the bin of 0.3, people would still say over 0.5.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    gaps: Tensor
    weights: Tensor

    def __init__(self, *, num_bins: int = 10) -> None:
        super().__init__()
        self.num_bins = num_bins
        for name in ("gaps", "weights"):
            self.add_state(name, torch.zeros(num_bins), dist_reduce_fx="sum")

    def update(
        self,
        probability_predicted: Float[Tensor, " M"],
        probability_human: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> None:
        """Add a batch of pairs."""
        pairs = probability_predicted.float(), probability_human.float(), weight.float()
        bins, predicted, human, half = both_orders(*pairs, self.num_bins)
        self.gaps.index_add_(0, bins, half * (predicted - human))
        self.weights.index_add_(0, bins, half)

    def compute(self) -> Tensor:
        """Return the error in [0, 1]."""
        return self.gaps.abs().sum() / self.weights.sum()
