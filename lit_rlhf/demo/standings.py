"""Who is ahead at which KL: SFT, its best samples by the reward model, DPO and PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lit_rlhf.demo.report_schema import Match, Standing
from lit_rlhf.evaluation.statistics import Floats, win_rate


class Contender(NamedTuple):
    """A policy's KL to SFT in nats per response, and its validation reward on each prompt.

    The prompts are the first ones of the same list for all; there may be fewer for one.
    """

    kl: float
    scores: Floats


def compare(contenders: Mapping[str, Contender]) -> tuple[Standing, ...]:
    """Let every policy meet every other one on the prompts that both have answered.

    Args:
        contenders: by name.

    Returns:
        Their standings by rising KL.

    Raises:
        DataError: one has answered no prompt, or a score is not finite.
    """
    ordered = sorted(contenders.items(), key=lambda item: item[1].kl)
    return tuple(
        Standing(
            name,
            float(own.kl),
            float(own.scores.mean()),
            tuple(
                _match(own.scores, opponent, other.scores)
                for opponent, other in ordered
                if opponent != name
            ),
        )
        for name, own in ordered
    )


def _match(scores: Floats, opponent: str, others: Floats) -> Match:
    n = min(len(scores), len(others))
    rate = win_rate(scores[:n], others[:n])
    return Match(opponent, rate.value, (rate.low, rate.high), rate.n)
