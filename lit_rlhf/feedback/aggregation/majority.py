"""The word of most labelers as a certain label."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.feedback.aggregation.method import Aggregation
from lit_rlhf.feedback.aggregation.pairs import JudgedPair, judged_pairs
from lit_rlhf.feedback.records import Comparison, JudgedGroup


@dataclass(frozen=True)
class Majority(Aggregation):
    """What most labelers preferred is better for certain, and a tie weighs nothing.

    For losses that take no soft labels. It forgets how sure people were: a loss that takes them
    learns more from the same judgments.
    """

    def pairs(self, judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a group or a comparison, each with probability 1."""
        return [
            pair._replace(probability=1.0, weight=pair.weight * (pair.probability > 0.5))
            for pair in judged_pairs(judgment)
        ]

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `pairs` does."""
        return self.pairs(group)
