"""Which pairs of responses are worth a judgment: functions of what the reward model is unsure of.

Legend: `N` candidate responses to several prompts, `M` pairs that may be asked, `H` features.

None of them takes the pairs whose predicted preference is nearest to one half: many of those are
true ties, about which people say nothing but noise.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import ConfigError
from lit_rlhf.ranges import require

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_THOMPSON_TRIES = 30  # as ActiveUltraFeedback's


class Candidates(NamedTuple):
    """What is known of the responses that could be judged.

    Attributes:
        mean: `[N]` estimated score of each.
        lower: `[N]` lower bound of the score.
        upper: `[N]` upper bound.
        features: `[N, H]` what the reward model sees in each.
        lengths: `[N]` characters.
        prompts: `[N]` number of the prompt that each responds to.
        pairs: `[M, 2]` the pairs that may be asked, as places among the `N`.
    """

    mean: Floats
    lower: Floats
    upper: Floats
    features: Floats
    lengths: Floats
    prompts: Integers
    pairs: Integers


class Acquisition(abc.ABC):
    """Chooses pairs. Frozen dataclasses below it are named in YAML by their `class_path`."""

    @abc.abstractmethod
    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs.

        Args:
            candidates: with the `M` pairs to choose from.
            num_pairs: how many are wanted.
            random: for all that is drawn.

        Returns:
            `[min(num_pairs, M)]` distinct places among `candidates.pairs`, the best first.
        """


@dataclass(frozen=True)
class RandomPairs(Acquisition):
    """Take pairs at random, each prompt once before any prompt twice.

    Random choice is hard to beat (arXiv 2604.02766), and the only one to measure accuracy on.
    """

    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs, see `Acquisition`."""
        return by_score(candidates, random.random(len(candidates.pairs)), num_pairs)


@dataclass(frozen=True)
class DeltaUCB(Acquisition):
    """Take the pairs that may differ most: `max(upper_a - lower_b, upper_b - lower_a)`.

    Best against worst under uncertainty. Source: ActiveUltraFeedback (arXiv 2603.09692), whose
    best rule it was: one pair a prompt, `argmax over i != j of upper_i - lower_j`.
    """

    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs, see `Acquisition`."""
        a, b = candidates.pairs.T
        lower, upper = candidates.lower, candidates.upper
        return by_score(candidates, np.maximum(upper[a] - lower[b], upper[b] - lower[a]), num_pairs)


@dataclass(frozen=True)
class InfoMax(Acquisition):
    """Take the pairs whose preference is known worst.

    `sigmoid(upper_a - lower_b) - sigmoid(lower_a - upper_b)`: the width of the interval of the
    probability that `a` is preferred. Source: ActiveUltraFeedback (arXiv 2603.09692).
    """

    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs, see `Acquisition`."""
        a, b = candidates.pairs.T
        lower, upper = candidates.lower, candidates.upper
        width = _sigmoid(upper[a] - lower[b]) - _sigmoid(lower[a] - upper[b])
        return by_score(candidates, width, num_pairs)


@dataclass(frozen=True)
class DRTS(Acquisition):
    """Double reversed Thompson sampling: the best of one draw against the worst of another.

    A draw is `mean + z * (upper - lower) / 2` with `z` uniform in [-1, 1], for each response of a
    prompt. Prompts come in random order. Source: ActiveUltraFeedback (arXiv 2603.09692), with its
    30 tries for two different responses.
    """

    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs, see `Acquisition`."""
        pairs_of = _pairs_of_prompts(candidates)
        wanted = min(num_pairs, len(candidates.pairs))
        chosen: list[int] = []
        while len(chosen) < wanted:  # once through all prompts, then again
            for prompt in random.permutation(sorted(pairs_of)):
                left = pairs_of[int(prompt)]
                place = _draw(candidates, left, random) if left and len(chosen) < wanted else None
                if place is not None:
                    left.remove(place)
                    chosen.append(place)
        return np.array(chosen, np.int64)


@dataclass(frozen=True)
class DOptimal(Acquisition):
    """Take the pairs that together fix the reward model's last layer best.

    One after the other, the pair that raises `log det A` most, with `x = features_a - features_b`,
    `A = ridge * I + sum over chosen pairs of p (1 - p) x x^T` and `p = sigmoid(mean_a - mean_b)`:
    the Fisher information of a Bradley-Terry model. What is like a chosen pair is worth little
    afterwards. Source: Shen et al., Active Reward Modeling, 2025 (arXiv 2502.04354).

    Attributes:
        ridge: what is known before, more than 0; features are taken at unit deviation.
    """

    ridge: float = 1.0

    def __post_init__(self) -> None:
        require("DOptimal.ridge", self.ridge, above=0)

    def __call__(
        self, candidates: Candidates, num_pairs: int, random: np.random.Generator
    ) -> Integers:
        """Choose pairs, see `Acquisition`; nothing is drawn."""
        a, b = candidates.pairs.T
        p = _sigmoid(candidates.mean[a] - candidates.mean[b])
        scale = candidates.features.std() or 1.0
        x = (candidates.features[a] - candidates.features[b]) / scale
        x = x * np.sqrt(p * (1 - p))[:, None]  # [M, H], each with its weight
        inverse = np.eye(x.shape[1]) / self.ridge
        gain = (x**2).sum(1) / self.ridge  # x^T A^-1 x; log det rises by log(1 + gain)
        chosen: list[int] = []
        for _ in range(min(num_pairs, len(x))):
            best = int(np.argmax(gain))
            chosen.append(best)
            # Sherman-Morrison: A^-1 loses v v^T.
            v = inverse @ x[best] / np.sqrt(1 + max(gain[best], 0.0))
            inverse -= np.outer(v, v)
            gain = gain - (x @ v) ** 2
            gain[chosen] = -np.inf
        return np.array(chosen, np.int64)


def pairs_within(
    prompts: Integers, texts: Sequence[str], *, max_length_gap: float | None = None
) -> Integers:
    """Return all pairs of different responses to one prompt.

    Args:
        prompts: `[N]` number of each response's prompt.
        texts: `N` responses; of two equal ones to a prompt, the later is left out.
        max_length_gap: leave out pairs whose lengths differ by more than this share of the longer
            one, so that length cannot be what people judge; None for any.

    Returns:
        `[M, 2]` places with `a < b`.

    Raises:
        ConfigError: the gap is out of range.
    """
    if max_length_gap is not None and not 0 <= max_length_gap <= 1:
        raise ConfigError(f"max_length_gap must be a share from 0 to 1, got {max_length_gap}")
    most = np.inf if max_length_gap is None else max_length_gap
    members: dict[int, dict[str, int]] = {}
    for place, (prompt, text) in enumerate(zip(prompts.tolist(), texts, strict=True)):
        members.setdefault(prompt, {}).setdefault(text, place)
    pairs = [
        (a, b)
        for own in members.values()
        for (one, a), (other, b) in combinations(own.items(), 2)
        if abs(len(one) - len(other)) <= most * max(len(one), len(other))
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def by_score(candidates: Candidates, scores: Floats, num_pairs: int) -> Integers:
    """Take the pairs with the largest scores, each prompt once before any prompt twice.

    Args:
        candidates: with `M` pairs.
        scores: `[M]`; of equal ones the earlier pair comes first.
        num_pairs: how many are wanted.

    Returns:
        `[min(num_pairs, M)]` places among the pairs.
    """
    order = np.argsort(-scores, kind="stable")
    prompts = candidates.prompts[candidates.pairs[order, 0]]
    seen: Counter[int] = Counter()
    turn = np.empty(len(order), np.int64)  # how many better pairs the prompt has
    for place, prompt in enumerate(prompts.tolist()):
        turn[place] = seen[prompt]
        seen[prompt] += 1
    return order[np.argsort(turn, kind="stable")][:num_pairs]


def _draw(candidates: Candidates, left: list[int], random: np.random.Generator) -> int | None:
    """Return one of a prompt's pairs by two Thompson draws, a random one where they find none."""
    pairs = {tuple(sorted(candidates.pairs[place].tolist())): place for place in left}
    members = np.array(sorted({member for pair in pairs for member in pair}))
    mean = candidates.mean[members]
    half = (candidates.upper[members] - candidates.lower[members]) / 2
    for _ in range(_THOMPSON_TRIES):
        best, worst = (mean + random.uniform(-1, 1, len(members)) * half for _ in range(2))
        ends = sorted((int(members[best.argmax()]), int(members[worst.argmin()])))
        if (found := pairs.get((ends[0], ends[1]))) is not None:
            return found
    return left[int(random.integers(len(left)))]


def _pairs_of_prompts(candidates: Candidates) -> dict[int, list[int]]:
    pairs_of: dict[int, list[int]] = {}
    for place, prompt in enumerate(candidates.prompts[candidates.pairs[:, 0]].tolist()):
        pairs_of.setdefault(prompt, []).append(place)
    return pairs_of


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(values / 2))
