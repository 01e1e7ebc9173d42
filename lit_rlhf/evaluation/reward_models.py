"""Reward models against people: accuracy where it is easy and where it is hard, calibration, seeds.

Intervals resample prompts: pairs of the same prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Estimate, Floats, cluster_sums, ratio, share
from lit_rlhf.evaluation.calibration import (
    JudgedPredictions,
    ReliabilityBin,
    brier_score,
    calibration_error,
    reliability,
)
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.evaluation.responses import SourcedPrompt
from lit_rlhf.evaluation.scoring import score_texts
from lit_rlhf.feedback import (
    Comparison,
    JudgedGroup,
    judged_pairs,
    mean_ratings,
    parse_judgment,
)
from lit_rlhf.prompts import Response, response_text
from lit_rlhf.rewards import RewardSource

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

ACCURACY = "Accuracy"
BY_AGREEMENT = "Accuracy by agreement of the people"
BY_LENGTH = "Accuracy by length difference"
BY_DOMAIN = "Accuracy by domain"
BY_RATING_GAP = "Accuracy by gap of the mean ratings"
CALIBRATION = "Calibration"
BETWEEN_MODELS = "Agreement between models"

# Upper ends of the share of people who agree, and what the level is called.
_AGREEMENT_LEVELS = (
    (0.6, "50 to 60 % agree"),
    (0.75, "60 to 75 % agree"),
    (0.9, "75 to 90 % agree"),
    (math.nextafter(1, 0), "over 90 % agree"),
    (1.0, "all agree"),
)
_LENGTH_LEVELS = (
    (-0.5, "much shorter preferred"),
    (-0.1, "shorter preferred"),
    (0.1, "about as long"),
    (0.5, "longer preferred"),
    (math.inf, "much longer preferred"),
)


class JudgedResponses(NamedTuple):
    """Judged texts and the pairs among them.

    Attributes:
        prompts: `N` prompts, one a text.
        texts: `N` responses: text, or messages that call tools.
        ratings: `[N]` people's mean rating of each; NaN where it was not rated.
        chosen: `[M]` place of the preferred response of each pair.
        rejected: `[M]` place of the other one.
        human: `[M]` share of people who preferred it, 0.5 to 1.
        weight: `[M]` how much the pair counts.
        groups: `[M]` the judged group (row of data) of each pair.
        num_groups: number of rows.
        domains: `M` names, "" without one.
    """

    prompts: list[SourcedPrompt]
    texts: list[Response]
    ratings: Floats
    chosen: Integers
    rejected: Integers
    human: Floats
    weight: Floats
    groups: Integers
    num_groups: int
    domains: list[str]


def read_judged(rows: Sequence[SourcedRecord], domain_field: str = "subset") -> JudgedResponses:
    """Collect the pairs of judged groups, comparisons or rows in RewardBench's format.

    Args:
        rows: with `prompt`, `chosen`, `rejected`, or judged groups, see docs/data.md.
        domain_field: the field that names a row's domain, where it has one.

    Raises:
        DataError: a row is not as expected, or no pair was judged at all.
    """
    prompts: list[SourcedPrompt] = []
    texts: list[Response] = []
    ratings: list[float] = []
    pairs, groups, domains = [], [], []
    for group, (row, where) in enumerate(rows):
        judgment = parse_judgment(row, where)
        first = len(texts)
        texts += judgment.responses
        ratings += _mean_ratings(judgment)
        prompts += [SourcedPrompt(judgment.prompt, where)] * len(judgment.responses)
        own = judged_pairs(judgment)
        pairs += [
            pair._replace(chosen=first + pair.chosen, rejected=first + pair.rejected)
            for pair in own
        ]
        groups += [group] * len(own)
        domains += [str(row.get(domain_field) or "")] * len(own)
    if not pairs:
        raise DataError("no row holds a judged pair")
    chosen, rejected, human, weight, _ = map(np.array, zip(*pairs, strict=True))
    return JudgedResponses(
        prompts,
        texts,
        np.array(ratings),
        chosen,
        rejected,
        human.astype(np.float64),
        weight.astype(np.float64),
        np.array(groups),
        len(rows),
        domains,
    )


def _mean_ratings(judgment: Comparison | JudgedGroup) -> list[float]:
    if isinstance(judgment, Comparison) or judgment.ratings is None:
        return [math.nan] * len(judgment.responses)
    return [math.nan if mean is None else mean for mean in mean_ratings(judgment)]


def reward_figures(
    judged: JudgedResponses, scores: Mapping[str, Floats], *, rating_gap: float | None = None
) -> tuple[list[Figure], dict[str, list[ReliabilityBin]]]:
    """Return every figure of reward models, and each one's reliability table.

    Args:
        judged: texts and pairs.
        scores: model -> `[N]` raw scores: the log-odds of a preference is a difference of two.
        rating_gap: mean ratings further apart than this are a section of their own; None for none.

    Raises:
        DataError: a gap is asked for, and nothing was rated.
    """
    figures: list[Figure] = []
    tables: dict[str, list[ReliabilityBin]] = {}
    gaps = {name: score[judged.chosen] - score[judged.rejected] for name, score in scores.items()}
    for name, gap in gaps.items():
        figures += _accuracies(judged, name, gap, rating_gap)
        pairs = JudgedPredictions(
            expit(gap),
            judged.human,
            judged.weight,
            judged.groups,
            judged.num_groups,
        )
        figures.append(Figure(CALIBRATION, name, "calibration_error", calibration_error(pairs)))
        figures.append(Figure(CALIBRATION, name, "brier_score", brier_score(pairs)))
        tables[name] = reliability(pairs)
    for one, other in combinations(gaps, 2):
        figures += _between(judged, (one, gaps[one]), (other, gaps[other]))
    return figures, tables


def score_judged(judged: JudgedResponses, rewards: Mapping[str, RewardSource]) -> dict[str, Floats]:
    """Let each reward score all texts: name -> `[N]`."""
    return {
        name: score_texts(name, reward, judged.prompts, judged.texts)
        for name, reward in rewards.items()
    }


def _accuracies(
    judged: JudgedResponses, name: str, gap: Floats, rating_gap: float | None
) -> Iterator[Figure]:
    yield Figure(ACCURACY, name, "accuracy", _accuracy(judged, gap), "%")
    for section, parts in (
        (BY_AGREEMENT, _agreement_parts(judged)),
        (BY_LENGTH, _length_parts(judged)),
        (BY_DOMAIN, _domain_parts(judged)),
        (BY_RATING_GAP, _rating_gap_parts(judged, rating_gap)),
    ):
        filled = {name: inside for name, inside in parts.items() if inside.any()}
        if len(filled) > 1:  # one part is the whole once more
            for part, inside in filled.items():
                estimate = _accuracy(judged, gap, inside)
                yield Figure(section, name, "accuracy", estimate, "%", against=part)


def _accuracy(judged: JudgedResponses, gap: Floats, inside: Bools | None = None) -> Estimate:
    """Estimate the share of pairs in people's order; a tie of the model counts half.

    Pairs on which people are evenly divided are left out.
    """
    counts = (judged.human > 0.5) & (judged.weight > 0) & (True if inside is None else inside)
    correct = (1 + np.sign(gap)) / 2
    return _by_group(judged, correct, judged.weight * counts, int(counts.sum()))


def _by_group(judged: JudgedResponses, values: Floats, weight: Floats, n: int) -> Estimate:
    below = cluster_sums(weight, judged.groups, judged.num_groups)
    above = cluster_sums(values * weight, judged.groups, judged.num_groups)
    held = below > 0
    if not held.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    # Rounding of the sums must not leave [0, 1].
    return share(np.clip(above[held] / below[held], 0, 1), below[held], n=n)


def _agreement_parts(judged: JudgedResponses) -> dict[str, Bools]:
    return _levels(judged.human, 0.5, _AGREEMENT_LEVELS)


def _length_parts(judged: JudgedResponses) -> dict[str, Bools]:
    """Part pairs by `(chosen - rejected) / longer of both`, in characters."""
    lengths = np.array([len(response_text(text)) for text in judged.texts], np.float64)
    chosen, rejected = lengths[judged.chosen], lengths[judged.rejected]
    difference = (chosen - rejected) / np.maximum(np.maximum(chosen, rejected), 1)
    return _levels(difference, -math.inf, _LENGTH_LEVELS)


def _levels(values: Floats, low: float, levels: Sequence[tuple[float, str]]) -> dict[str, Bools]:
    """Part values by the upper ends of levels, the first of which begins above `low`."""
    lows = [low, *(high for high, _ in levels)]
    return {
        name: (values > low) & (values <= high)
        for low, (high, name) in zip(lows[:-1], levels, strict=True)
    }


def _domain_parts(judged: JudgedResponses) -> dict[str, Bools]:
    domains = np.array(judged.domains)
    return {name or "(none)": domains == name for name in sorted(set(judged.domains))}


def _rating_gap_parts(judged: JudgedResponses, rating_gap: float | None) -> dict[str, Bools]:
    if rating_gap is None:
        return {}
    gaps = np.abs(judged.ratings[judged.chosen] - judged.ratings[judged.rejected])
    if np.isnan(gaps).all():
        raise DataError("--rating-gap: the data hold rankings or comparisons, and no ratings")
    apart = f"{rating_gap:g} apart"
    return {f"at most {apart}": gaps <= rating_gap, f"over {apart}": gaps > rating_gap}


def _between(
    judged: JudgedResponses, one: tuple[str, Floats], other: tuple[str, Floats]
) -> Iterator[Figure]:
    (first, first_gap), (second, second_gap) = one, other
    ones, num_pairs = np.ones(len(first_gap)), len(first_gap)
    same = (np.sign(first_gap) == np.sign(second_gap)).astype(np.float64)
    agreement = _by_group(judged, same, ones, num_pairs)
    yield Figure(BETWEEN_MODELS, first, "same_order", agreement, "%", against=second)
    counts = (judged.human > 0.5) & (judged.weight > 0)
    weight = judged.weight * counts
    gain = (np.sign(first_gap) - np.sign(second_gap)) / 2 * weight
    above = cluster_sums(gain, judged.groups, judged.num_groups)
    below = cluster_sums(weight, judged.groups, judged.num_groups)
    difference = ratio(above, below, n=int(counts.sum()))
    yield Figure(BETWEEN_MODELS, first, "accuracy_difference", difference, "%", against=second)
