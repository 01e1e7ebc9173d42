"""How well predicted preferences agree with people's: accuracy, Brier score, calibration.

All three take the same arguments: `probability_predicted [M]`, the predicted probability that
the first response of a pair is better (of a reward model: `sigmoid(score difference)`),
`probability_human [M]`, the share of people who said so, and `weight [M] >= 0`. They keep sums,
which are added over ranks, so the result does not depend on batches or processes. None of them
depends on which response of a pair is first. Where nothing was counted they are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class Reduction(NamedTuple):
    """How numbers of all processes become one: a tensor's sum, and the largest number."""

    sum: Callable[[Tensor], Tensor]
    largest: Callable[[float], float]


class NamedMeans(nn.Module):
    """Weighted means of several named values over batches and ranks.

    Args:
        names: of the values; each update brings all of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._means = {name: MeanMetric() for name in names}
        # Registered, so that the states move with the module.
        self.metrics = nn.ModuleList(self._means.values())

    def update(self, values: Mapping[str, Tensor], weight: Tensor, **own_weights: Tensor) -> None:
        """Add values, each `[n]` or a scalar, with a weight of the same shape.

        Args:
            values: by name.
            weight: of all values that have no weight of their own.
            **own_weights: by name.
        """
        for name, mean in self._means.items():
            mean.update(values[name].detach(), own_weights.get(name, weight))

    def compute(self) -> dict[str, Tensor]:
        """Return the means and begin again."""
        means = {name: mean.compute() for name, mean in self._means.items()}
        for mean in self._means.values():
            mean.reset()
        return means


class PairAccuracy(Metric):
    """The weighted share of pairs whose better response, by people, is also predicted so.

    A predicted tie counts half. Pairs on which people are divided evenly are left out.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(
        self,
        probability_predicted: Float[Tensor, " M"],
        probability_human: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> None:
        """Add a batch of pairs."""
        margin = probability_predicted.float() - 0.5
        predicted = torch.sign(margin) + 0 * margin  # the sign of NaN is 0: keep it NaN
        human = torch.sign(probability_human.float() - 0.5)
        counted = weight.float() * human.abs()
        self.correct += (counted * (1 + predicted * human) / 2).sum()
        self.total += counted.sum()

    def compute(self) -> Tensor:
        """Return the accuracy in [0, 1]."""
        return self.correct / self.total


class BrierScore(Metric):
    """The weighted mean squared error of the predicted against the human probability.

    `sum_m weight_m (predicted_m - human_m)^2 / sum_m weight_m`. Source: Brier 1950, with the
    share of people in place of an outcome, so a perfect prediction of that share has 0.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    squared_error: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squared_error", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(
        self,
        probability_predicted: Float[Tensor, " M"],
        probability_human: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> None:
        """Add a batch of pairs."""
        error = probability_predicted.float() - probability_human.float()
        self.squared_error += (weight.float() * error.square()).sum()
        self.total += weight.float().sum()

    def compute(self) -> Tensor:
        """Return the score in [0, 1]; lower is better."""
        return self.squared_error / self.total


class ReliabilityTable(NamedTuple):
    """What people said where a probability was predicted, by bins of equal width over [0, 1].

    Attributes:
        predicted: `[num_bins]` mean predicted probability; NaN in an empty bin.
        human: `[num_bins]` mean human probability; NaN in an empty bin.
        weight: `[num_bins]` total weight.
    """

    predicted: Float[Tensor, " num_bins"]
    human: Float[Tensor, " num_bins"]
    weight: Float[Tensor, " num_bins"]


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

    predicted: Tensor
    human: Tensor
    weight: Tensor

    def __init__(self, *, num_bins: int = 10) -> None:
        super().__init__()
        self.num_bins = num_bins
        for name in ("predicted", "human", "weight"):
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
        self.predicted.index_add_(0, bins, half * predicted)
        self.human.index_add_(0, bins, half * human)
        self.weight.index_add_(0, bins, half)

    def compute(self) -> Tensor:
        """Return the error in [0, 1]."""
        return (self.predicted - self.human).abs().sum() / self.weight.sum()

    def reliability_table(self) -> ReliabilityTable:
        """Return the bins behind the error, over all ranks: every rank has to call this."""
        with self.sync_context(should_sync=not self._is_synced):
            return ReliabilityTable(
                predicted=self.predicted / self.weight,
                human=self.human / self.weight,
                weight=self.weight.clone(),
            )
