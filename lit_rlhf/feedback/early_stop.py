"""When a comparison needs no further judgments: labelers agree so well that no more would turn it.

What is asked to measure something is never stopped: tasks drawn at random (evaluation rests on
them), gold tasks, and tasks asked again or for an audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.reading import StoredTask

# The key of a task's metadata that says how it was chosen, and the values that are not stopped.
SHARE = "share"
_MEASURING_SHARES = ("random", "gold", "audit")


@dataclass(frozen=True)
class EarlyStop:
    """Stop asking once one side's posterior is high enough.

    Each labeler prefers the better response with probability `accuracy`, and before any judgment
    both are as likely, so the posterior of a side is `sigmoid(votes * log(a / (1 - a)))` with the
    votes for it less those against it. A tie is no vote.

    Attributes:
        posterior: of one side, from which on nobody else is asked.
        accuracy: how often one judgment is right; measure it on the random share.
        least: judgments that a comparison has at the least.

    Raises:
        ConfigError: a number is out of range.
    """

    posterior: float = 0.95
    accuracy: float = 0.8
    least: int = 2

    def __post_init__(self) -> None:
        if not (0.5 < self.posterior < 1 and 0.5 < self.accuracy < 1 and self.least >= 1):
            raise ConfigError(
                f"early_stop: posterior {self.posterior} and accuracy {self.accuracy} must be "
                f"between 0.5 and 1, least {self.least} at least 1."
            )

    def is_decided(self, task: StoredTask) -> bool:
        """Say whether a task needs no further judgments."""
        return not _measures(task) and self.holds(task.content.judgments)

    def holds(self, judgments: Sequence[Judgment]) -> bool:
        """Say whether one side's posterior is high enough after these judgments of a pair."""
        positions = [judgment.positions(2) for judgment in judgments]
        compared = [ranks for ranks in positions if ranks and None not in ranks]
        # `or 0` is for the types alone: nothing is None here.
        votes = sum(_sign((b or 0) - (a or 0)) for a, b in compared)
        odds = (self.accuracy / (1 - self.accuracy)) ** abs(votes)
        return len(compared) >= self.least and odds / (1 + odds) >= self.posterior


def _measures(task: StoredTask) -> bool:
    is_gold = any(judgment.is_gold for judgment in task.content.judgments)
    share = task.content.metadata.get(SHARE)
    return (
        task.kind != "comparison"
        or task.repeats is not None
        or is_gold
        or bool(task.content.metadata.get("is_gold"))
        or share in _MEASURING_SHARES
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
