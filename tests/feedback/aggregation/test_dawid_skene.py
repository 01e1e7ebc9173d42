import numpy as np
import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import Comparison, JudgedGroup
from lit_rlhf.feedback.aggregation import BetaMean, OneCoinDawidSkene

ACCURACIES = (0.95, 0.9, 0.7, 0.55, 0.5)
NAMES = ("ana", "ben", "cem", "dia", "eve")


def simulate(seed, num_tasks=200):
    """Comparisons, and which response is the better one, with labelers of known accuracy."""
    draw = np.random.default_rng(seed)
    best = draw.integers(0, 2, num_tasks)
    is_right = draw.random((num_tasks, len(ACCURACIES))) < ACCURACIES
    groups = []
    for task in range(num_tasks):
        said = np.where(is_right[task], best[task], 1 - best[task])
        ratings = tuple((1.0, 0.0) if side == 0 else (0.0, 1.0) for side in said)
        groups.append(JudgedGroup(f"{task}", ("a", "b"), ratings=ratings, labelers=NAMES))
    return groups, best


def accuracy(method, groups, best):
    chosen = [method.pairs(group)[0].chosen for group in groups]
    return float(np.mean(np.array(chosen) == best))


def test_it_beats_the_majority_where_labelers_differ():
    ours, majority = [], []
    for seed in range(10):
        groups, best = simulate(seed)
        method = OneCoinDawidSkene().fit(groups)
        ours.append(accuracy(method, groups, best))
        majority.append(accuracy(BetaMean(), groups, best))
    assert np.mean(ours) >= 0.94
    assert 0.86 <= np.mean(majority) <= 0.90


def test_it_learns_the_accuracies_and_is_calibrated():
    groups, best = simulate(0, num_tasks=5000)
    method = OneCoinDawidSkene().fit(groups)
    learned = [method.accuracies[name] for name in NAMES]
    assert learned == pytest.approx(ACCURACIES, abs=0.03)
    pairs = [method.pairs(group)[0] for group in groups]
    believed = np.mean([pair.probability for pair in pairs])
    assert believed == pytest.approx(accuracy(method, groups, best), abs=0.01)


def test_by_hand_with_known_accuracies():
    method = OneCoinDawidSkene(accuracies={"ana": 0.9, "ben": 0.6})
    group = JudgedGroup(
        "p", ("a", "b"), rankings=((1.0, 2.0), (2.0, 1.0), (1.0, 1.0)), labelers=("ana", "ben", "x")
    )
    odds = (0.9 / 0.1) / (0.6 / 0.4)  # the tie says nothing
    assert method.pairs(group)[0].probability == pytest.approx(odds / (1 + odds))
    assert method.fit([group]) is method


def test_labelers_that_are_not_named_share_one_accuracy():
    groups, _ = simulate(1)
    unnamed = [
        JudgedGroup(g.prompt, g.responses, ratings=g.ratings, labelers=(None,) * 5) for g in groups
    ]
    method = OneCoinDawidSkene().fit([*unnamed, Comparison("p", "a", "b")])
    assert list(method.accuracies) == [""]


def test_groups_without_names_are_refused():
    with pytest.raises(DataError, match="give the rows the field 'labelers'"):
        OneCoinDawidSkene().fit([JudgedGroup("p", ("a", "b"), rankings=((1.0, 2.0),))])


def test_nothing_to_learn_from_is_no_error():
    assert OneCoinDawidSkene().fit([]).accuracies == {}
