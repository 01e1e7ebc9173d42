"""Which policy goes on: the new one only where a judge that no round used is sure it is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lit_rlhf.evaluation.figures import Figure, find_figure
from lit_rlhf.flywheel.settings import GateConfig

NEW, PROMOTED, SFT = "new", "promoted", "sft"  # names of the policies in a round's evaluation
GATE = "gate"


class Promotion(NamedTuple):
    """What the gate decided.

    Attributes:
        is_promoted: the next round starts from the new policy.
        gain: of the new policy over the last promoted one by the gate's judge, paired by prompt,
            with its interval: `value`, `low`, `high`, `n`.
        kl: to SFT, in nats a response.
        length_ratio: mean length over SFT's.
        perplexity_ratio: perplexity on held-out text over SFT's; None where none was measured.
        reasons: why it was not promoted; empty where it was.
    """

    is_promoted: bool
    gain: dict[str, float | None]
    kl: float
    length_ratio: float
    perplexity_ratio: float | None
    reasons: list[str]


def decide(figures: Sequence[Figure], gate: GateConfig, opponent: str) -> Promotion:
    """Decide by the figures of `lit-rlhf evaluate policies`.

    Args:
        figures: of the policies `new`, `sft` and, if it is another one, `promoted`.
        gate: the limits.
        opponent: name of the last promoted policy among them.

    Raises:
        DataError: a figure is missing.
    """
    gain = find_figure(
        figures, metric="score_difference", subject=NEW, against=opponent, judge=GATE
    ).estimate
    kl = find_figure(figures, metric="kl", subject=NEW).estimate.value
    length = _ratio(figures, "length")
    perplexity = None if gate.perplexity_data is None else _ratio(figures, "perplexity")
    reasons = []
    if not gain.low > 0:
        reasons.append(f"the gain's lower bound is {gain.low:.3f}, not above 0")
    if gate.max_kl is not None and not kl <= gate.max_kl:
        reasons.append(f"the KL is {kl:.2f} nats, over {gate.max_kl:g}")
    if not 1 / gate.max_length_ratio <= length <= gate.max_length_ratio:
        reasons.append(f"responses are {length:.2f} times as long as SFT's")
    if perplexity is not None and not perplexity <= gate.max_perplexity_ratio:
        reasons.append(f"the perplexity on held-out text is {perplexity:.2f} times SFT's")
    return Promotion(not reasons, gain.as_json(), kl, length, perplexity, reasons)


def _ratio(figures: Sequence[Figure], metric: str) -> float:
    new, sft = (
        find_figure(figures, metric=metric, subject=name).estimate.value for name in (NEW, SFT)
    )
    return new / sft if sft else math.inf
