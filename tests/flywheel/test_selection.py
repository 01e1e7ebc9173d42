"""Acquisitions against plain loops, and on cases where a wrong one would be seen."""

import math

import numpy as np
import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.selection import (
    DRTS,
    Candidates,
    DeltaUCB,
    DOptimal,
    InfoMax,
    RandomPairs,
    by_score,
    pairs_within,
)
from tests.flywheel.planted import planted_candidates, random_candidates

ALL = (RandomPairs(), DeltaUCB(), InfoMax(), DRTS(), DOptimal())


def random(seed=0):
    return np.random.default_rng(seed)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def one_of_each_prompt(candidates, score):
    """Return the best pair of each prompt, the best first: loops, and no arrays."""
    best = {}
    for place, (a, b) in enumerate(candidates.pairs.tolist()):
        prompt = int(candidates.prompts[a])
        value = max(score(candidates, a, b), score(candidates, b, a))
        if prompt not in best or value > best[prompt][0]:
            best[prompt] = (value, place)
    return [place for _, place in sorted(best.values(), reverse=True)]


def widest_gap(candidates, a, b):
    return candidates.upper[a] - candidates.lower[b]


def widest_probability(candidates, a, b):
    surest = sigmoid(candidates.upper[a] - candidates.lower[b])
    return surest - sigmoid(candidates.lower[a] - candidates.upper[b])


@pytest.mark.parametrize(
    ("acquisition", "score"), [(DeltaUCB(), widest_gap), (InfoMax(), widest_probability)]
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_paper(acquisition, score, seed):
    candidates = random_candidates(seed)
    chosen = acquisition(candidates, 6, random())
    assert chosen.tolist() == one_of_each_prompt(candidates, score)


@pytest.mark.parametrize("acquisition", ALL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("num_pairs", [0, 1, 7, 1000])
def test_pairs_are_distinct_and_as_many_as_wanted(acquisition, num_pairs):
    candidates = random_candidates()
    chosen = acquisition(candidates, num_pairs, random())
    assert len(chosen) == len(set(chosen.tolist())) == min(num_pairs, len(candidates.pairs))
    assert set(chosen.tolist()) <= set(range(len(candidates.pairs)))
    assert chosen.tolist() == acquisition(candidates, num_pairs, random()).tolist()


@pytest.mark.parametrize("acquisition", ALL[:4], ids=lambda one: type(one).__name__)
def test_no_prompt_comes_twice_before_each_came_once(acquisition):
    candidates = random_candidates()
    chosen = acquisition(candidates, 12, random())
    prompts = candidates.prompts[candidates.pairs[chosen, 0]].tolist()
    assert sorted(prompts[:6]) == sorted(prompts[6:]) == list(range(6))


def test_double_thompson_takes_best_against_worst_where_all_is_known():
    candidates = random_candidates()
    known = candidates._replace(lower=candidates.mean, upper=candidates.mean)
    for place in DRTS()(known, 6, random()):
        a, b = known.pairs[place]
        own = known.mean[known.prompts == known.prompts[a]]
        assert {known.mean[a], known.mean[b]} == {own.max(), own.min()}


def test_double_thompson_draws_by_the_width_of_the_bounds():
    """Two responses that are known to be alike, and one that may be anywhere: it is drawn often."""
    mean, half = np.zeros(3), np.array([0.1, 0.1, 5.0])
    pairs = pairs_within(np.zeros(3, np.int64), ["a", "b", "c"])
    features, lengths = np.zeros((3, 2)), np.ones(3)
    candidates = Candidates(
        mean, mean - half, mean + half, features, lengths, np.zeros(3, np.int64), pairs
    )
    drawn = [pairs[DRTS()(candidates, 1, random(seed))[0]].tolist() for seed in range(1000)]
    # By chance 2 of 3 pairs have it. It is best or worst in 4 of 5 draws that name two responses.
    assert sum(2 in pair for pair in drawn) / 1000 == pytest.approx(0.8, abs=0.04)


def determinant(candidates, chosen, ridge):
    """Return `log det A` of chosen pairs, from its definition."""
    scale = candidates.features.std()
    matrix = ridge * np.eye(candidates.features.shape[1])
    for place in chosen:
        a, b = candidates.pairs[place]
        p = sigmoid(candidates.mean[a] - candidates.mean[b])
        x = (candidates.features[a] - candidates.features[b]) / scale
        matrix += p * (1 - p) * np.outer(x, x)
    return np.linalg.slogdet(matrix)[1]


def test_d_optimal_raises_the_determinant_most_at_every_step():
    candidates = random_candidates(num_prompts=4)
    chosen = DOptimal(ridge=0.5)(candidates, 15, random()).tolist()
    for step, place in enumerate(chosen):
        left = [one for one in range(len(candidates.pairs)) if one not in chosen[:step]]
        gains = [determinant(candidates, [*chosen[:step], one], 0.5) for one in left]
        assert left[int(np.argmax(gains))] == place


def test_what_is_like_a_chosen_pair_is_worth_little():
    """A cluster of near-duplicates: D-optimal asks once about it, random choice again and again."""
    features, scores, prompts = planted_candidates()
    pairs = pairs_within(prompts, [str(place) for place in range(len(prompts))])
    unsure = np.ones(len(scores))
    candidates = Candidates(
        np.zeros(len(scores)), -unsure, unsure, features, unsure, prompts, pairs
    )
    within_cluster = (pairs % 6 < 3).all(1)
    chosen = DOptimal()(candidates, 40, random())
    assert within_cluster[chosen].sum() == 0
    assert within_cluster[RandomPairs()(candidates, 40, random())].mean() > 0.1


def test_true_ties_that_are_known_are_not_asked_again():
    """Nearly all is known: what is predicted to be one half are the ties."""
    features, scores, prompts = planted_candidates()
    pairs = pairs_within(prompts, [str(place) for place in range(len(prompts))])
    half = np.full(len(scores), 0.1)
    candidates = Candidates(scores, scores - half, scores + half, features, half, prompts, pairs)
    is_tie = np.abs(scores[pairs[:, 0]] - scores[pairs[:, 1]]) < 0.2
    assert is_tie.sum() > 60
    for acquisition in (DeltaUCB(), DRTS()):
        assert is_tie[acquisition(candidates, 60, random())].mean() < 0.05
    nearest_half = by_score(candidates, -np.abs(np.diff(scores[pairs], axis=1)[:, 0]), 60)
    assert is_tie[nearest_half].all()


def test_pairs_are_of_one_prompt_and_of_different_texts():
    prompts = np.array([0, 0, 0, 1, 1])
    pairs = pairs_within(prompts, ["same", "same", "other", "same", "other"])
    assert pairs.tolist() == [[0, 2], [3, 4]]
    assert pairs_within(np.array([0, 1]), ["a", "b"]).shape == (0, 2)


def test_length_matched_pairs():
    prompts = np.zeros(3, np.int64)
    texts = ["a" * 10, "b" * 9, "c" * 5]
    assert pairs_within(prompts, texts, max_length_gap=0.1).tolist() == [[0, 1]]
    assert len(pairs_within(prompts, texts, max_length_gap=0.5)) == 3
    with pytest.raises(ConfigError, match="max_length_gap must be a share"):
        pairs_within(prompts, texts, max_length_gap=1.5)


def test_a_ridge_must_be_positive():
    with pytest.raises(ConfigError, match=r"DOptimal.ridge is 0"):
        DOptimal(ridge=0)
