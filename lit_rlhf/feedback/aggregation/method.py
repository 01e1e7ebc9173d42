"""What every way of aggregating judgments does, and the default one."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.aggregation.pairs import JudgedPair, judged_pairs, oriented, pair_points
from lit_rlhf.feedback.records import Comparison, JudgedGroup


class Aggregation(abc.ABC):
    """How several labelers' judgments of a group become pairs with probabilities.

    Frozen dataclasses below it are chosen by `class_path`. A comparison says its probability
    itself, and keeps it.

    Attributes:
        learns: it must see all groups (`fit`) before it can aggregate one.
    """

    learns: ClassVar[bool] = False

    def fit(self, groups: Iterable[Comparison | JudgedGroup]) -> Self:
        """Return the method as it is after it has seen all groups; itself, where it learns none."""
        return self

    def pairs(self, judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
        """Return each pair of responses that somebody judged, once, the preferred one first."""
        if isinstance(judgment, Comparison):
            return judged_pairs(judgment)
        return self.pairs_of_group(judgment)

    @abc.abstractmethod
    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `pairs` does."""


@dataclass(frozen=True)
class BetaMean(Aggregation):
    """The share of labelers who prefer a response, shrunk towards one half.

    `probability = (wins + prior) / (n + 2 * prior)`, with a tie as half a win: the mean of a share
    with the prior Beta(prior, prior). One labeler of one is less sure than fifteen of fifteen.

    Attributes:
        prior: imagined labelers for each side; 0.5 is Jeffreys's prior, 0 the plain share.

    Raises:
        ConfigError: `prior` is negative.
    """

    prior: float = 0.5

    def __post_init__(self) -> None:
        if not self.prior >= 0:
            raise ConfigError(f"data.aggregation.prior={self.prior}: must be 0 or more.")

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `Aggregation.pairs` does."""
        pairs = []
        for a, b, points_a, points_b in pair_points(group):
            first, second = points_a + 2 * self.prior, points_b + 2 * self.prior
            total = first + second
            pairs.append(oriented(a, b, first / total, second / total, group.weight))
        return pairs
