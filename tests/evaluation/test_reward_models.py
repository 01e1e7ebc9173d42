"""Figures of reward models from given scores, against plain loops."""

import numpy as np
import pytest

from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.sources import read_records
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.reward_models import read_judged, reward_figures, score_judged
from lit_rlhf.rewards import FunctionReward
from tests.support.figures import values
from tests.support.phases import judged_groups, write_rows

RANDOM = np.random.default_rng(6)
# RewardBench's format, with its further fields.
BENCH = [
    {
        "prompt": f"question {index}",
        "chosen": "a longer answer" if index % 2 else "ok",
        "rejected": "no",
        "chosen_model": "m",
        "rejected_model": "n",
        "subset": ["chat", "safety", "code"][index % 3],
        "id": index,
    }
    for index in range(30)
]


def sourced(rows):
    return [SourcedRecord(row, f"rows:{index}") for index, row in enumerate(rows)]


def accuracy_by_loop(judged, scores, keep=lambda pair: True):
    correct = total = 0.0
    for pair in range(len(judged.human)):
        if judged.human[pair] == 0.5 or not keep(pair):
            continue
        gap = scores[judged.chosen[pair]] - scores[judged.rejected[pair]]
        correct += judged.weight[pair] * (0.5 if gap == 0 else gap > 0)
        total += judged.weight[pair]
    return correct / total


def test_rewardbench_rows_by_domain():
    judged = read_judged(sourced(BENCH))
    scores = RANDOM.normal(size=len(judged.texts))
    figures, _ = reward_figures(judged, {"m": scores})
    whole = values(figures, section="Accuracy")
    assert whole.value == pytest.approx(accuracy_by_loop(judged, scores))
    assert whole.n == 30
    for domain in ("chat", "safety", "code"):
        part = values(figures, section="Accuracy by domain", against=domain)
        expected = accuracy_by_loop(judged, scores, lambda p, d=domain: judged.domains[p] == d)
        assert (part.value, part.n) == (pytest.approx(expected), 10)
        assert part.low <= part.value <= part.high
    shorter, longer = "about as long", "much longer preferred"
    assert values(figures, section="Accuracy by length difference", against=longer).n == 15
    assert values(figures, section="Accuracy by length difference", against=shorter).n == 15
    assert not [f for f in figures if f.section.startswith("Accuracy by agreement")]


def test_judged_groups_by_agreement_and_with_prompts_as_units():
    rows = judged_groups(12)
    judged = read_judged(sourced(rows))
    scores = np.round(RANDOM.normal(size=len(judged.texts)), 1)
    figures, _ = reward_figures(judged, {"m": scores})
    assert values(figures, section="Accuracy").value == pytest.approx(
        accuracy_by_loop(judged, scores)
    )
    parts = [f for f in figures if f.section == "Accuracy by agreement of the people"]
    assert len(parts) > 1
    assert sum(part.estimate.n for part in parts) == int((judged.human > 0.5).sum())
    everyone = values(figures, section=parts[0].section, against="all agree")
    expected = accuracy_by_loop(judged, scores, lambda pair: judged.human[pair] == 1)
    assert everyone.value == pytest.approx(expected)
    # Copies of the pairs of a prompt are no new prompts: intervals stay, within the same draws.
    doubled = judged._replace(
        **{
            name: np.repeat(getattr(judged, name), 2)
            for name in ("chosen", "rejected", "human", "weight", "groups")
        },
        domains=[d for d in judged.domains for _ in "12"],
    )
    once, twice = (
        values(reward_figures(data, {"m": scores})[0], section="Accuracy")
        for data in (judged, doubled)
    )
    assert twice[:3] == pytest.approx(once[:3])


def test_judged_groups_by_the_gap_of_the_mean_ratings():
    rated = {"ratings": [[4, 1, 0.5, None], [3, 2, None, 1]]}  # mean ratings 3.5, 1.5, 0.5, 1
    rows = sourced([{"prompt": "p", "responses": list("abcd"), **rated}] * 3)
    scores = np.array([3.0, 1, 2, 4] * 3)
    figures, _ = reward_figures(read_judged(rows), {"m": scores}, rating_gap=1.0)
    parts = {f.against: f.estimate for f in figures if f.section.endswith("mean ratings")}
    # a-b, a-c and a-d are further apart, b-c and b-d at most one; nobody rated c and d both.
    assert (parts["over 1 apart"].value, parts["over 1 apart"].n) == (pytest.approx(2 / 3), 9)
    assert (parts["at most 1 apart"].value, parts["at most 1 apart"].n) == (0, 6)
    with pytest.raises(DataError, match="--rating-gap: the data hold"):
        reward_figures(read_judged(sourced(BENCH)), {"m": np.zeros(60)}, rating_gap=1.0)


def test_a_perfect_and_a_blind_model():
    judged = read_judged(sourced(BENCH))
    perfect = np.zeros(len(judged.texts))
    perfect[judged.chosen] = 9
    blind = np.zeros(len(judged.texts))
    figures, tables = reward_figures(judged, {"perfect": perfect, "blind": blind})
    sure = values(figures, section="Accuracy", subject="perfect")
    assert sure.value == 1
    assert 0.85 < sure.low < 0.9  # 30 of 30 are not certain
    assert values(figures, section="Accuracy", subject="blind").value == 0.5
    assert values(figures, metric="brier_score", subject="blind").value == pytest.approx(0.25)
    assert values(figures, metric="brier_score", subject="perfect").value < 1e-6
    assert [(row.low, row.high) for row in tables["perfect"]] == [(0.0, 0.1), (0.9, 1.0)]
    assert values(figures, metric="accuracy_difference").value == pytest.approx(0.5)
    assert values(figures, metric="same_order").value == 0


def test_agreement_between_seeds():
    judged = read_judged(sourced(judged_groups(12)))
    one, other = RANDOM.normal(size=(2, len(judged.texts)))
    figures, _ = reward_figures(judged, {"seed 1": one, "seed 2": other})
    gaps = [score[judged.chosen] - score[judged.rejected] for score in (one, other)]
    same = values(figures, metric="same_order")
    # Of each prompt its share, prompts counted by their pairs.
    assert same.value == pytest.approx(np.mean((gaps[0] > 0) == (gaps[1] > 0)))
    difference = values(figures, metric="accuracy_difference")
    expected = accuracy_by_loop(judged, one) - accuracy_by_loop(judged, other)
    assert difference.value == pytest.approx(expected)
    assert difference.low < difference.value < difference.high


def test_a_python_function_may_judge(tmp_path):
    rows = read_records(write_rows(tmp_path / "bench.jsonl", BENCH))
    judged = read_judged(rows)
    scores = score_judged(judged, {"f": FunctionReward("tests.support.toy_rewards.length")})
    assert scores["f"] == pytest.approx([len(text) / 10 for text in judged.texts])


def test_rows_without_a_pair_are_refused():
    silent = {"prompt": "p", "responses": ["a", "b"], "ratings": [[1, None]]}
    with pytest.raises(DataError, match="no row holds a judged pair"):
        read_judged(sourced([silent]))
    with pytest.raises(DataError, match="rows:0"):
        read_judged(sourced([{"prompt": "p"}]))
