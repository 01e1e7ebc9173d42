"""Figures of policies from given responses and scores, against plain loops."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from lit_rlhf.evaluation.pairwise import Verdicts
from lit_rlhf.evaluation.policies import Judgments, judge_policies, outcomes_of, policy_figures
from lit_rlhf.evaluation.responses import Responses, SourcedPrompt, TokenFacts
from lit_rlhf.rewards import FunctionReward
from tests.support.figures import values

RANDOM = np.random.default_rng(8)
NUM_PROMPTS = 12


def responses(name, num_samples=1, **changes):
    texts = tuple(
        tuple("w" * int(size) + f" {name}" for size in RANDOM.integers(1, 30, size=num_samples))
        for _ in range(NUM_PROMPTS)
    )
    return Responses(name, f"{name}.jsonl", texts, **changes)


def test_outcomes_compare_all_samples_of_a_prompt():
    first, second = np.round(RANDOM.normal(size=(2, 5, 3)), 1)
    wins, ties = outcomes_of(first, second, 0.2)
    for prompt in range(5):
        pairs = list(product(first[prompt], second[prompt]))
        tied = [abs(a - b) <= 0.2 for a, b in pairs]
        expected = np.mean([0.5 if tie else a > b for (a, b), tie in zip(pairs, tied, strict=True)])
        assert wins[prompt].mean() == pytest.approx(expected)
        assert ties[prompt] == pytest.approx(np.mean(tied))


def test_figures_of_a_pair_by_a_judge_that_scores():
    one, other = responses("one"), responses("other")
    scores = RANDOM.normal(size=(2, NUM_PROMPTS, 1))
    scores[1, 0] = scores[0, 0]  # a tie
    figures = policy_figures([one, other], Judgments({"rm": list(scores)}, {}))
    gaps = (scores[0] - scores[1])[:, 0]
    rate = values(figures, metric="win_rate")
    assert rate.value == pytest.approx(np.mean([0.5 if g == 0 else g > 0 for g in gaps]))
    assert rate.low < rate.value < rate.high
    assert values(figures, metric="ties").value == pytest.approx(1 / NUM_PROMPTS)
    difference = values(figures, metric="score_difference")
    assert difference.value == pytest.approx(gaps.mean())
    in_deviations = values(figures, metric="standardized_difference")
    assert in_deviations.value == pytest.approx(gaps.mean() / scores[1].std())
    assert values(figures, metric="score", subject="one").value == pytest.approx(scores[0].mean())
    assert all(figure.estimate.n > 0 for figure in figures)
    assert {figure.against for figure in figures if figure.section.startswith("Against")} == {
        "other"
    }


def test_figures_of_a_judge_that_compares():
    outcome = np.array([1, 0.5, math.nan, 0, 0.75, 1, 1, 1, 0.5, 0, 1, 1])
    consistent = np.where(np.isnan(outcome), math.nan, np.isin(outcome, [0, 1]))
    consistent[1] = 1  # a tie in both orders; the 0.5 further on are opposite answers
    verdicts = Verdicts(outcome, consistent, np.where(np.isnan(outcome), math.nan, 0.75))
    judgments = Judgments({}, {"llm": {(0, 1): verdicts}})
    figures = policy_figures([responses("one"), responses("other")], judgments)
    known = outcome[~np.isnan(outcome)]
    assert values(figures, metric="win_rate").value == pytest.approx(known.mean())
    assert values(figures, metric="win_rate").n == 11
    assert values(figures, metric="ties").value == pytest.approx(1 / 11)
    assert values(figures, metric="same_in_both_orders").value == pytest.approx(9 / 11)
    assert values(figures, metric="first_position_wins").value == pytest.approx(0.75)
    assert values(figures, metric="answers_readable").value == pytest.approx(11 / 12)


def test_agreement_of_judges_leaves_ties_and_missing_verdicts_out():
    scores = [np.ones((NUM_PROMPTS, 1)), np.zeros((NUM_PROMPTS, 1))]
    outcome = np.array([1, 1, 1, 0, 0.5, math.nan, *[1] * 6])
    verdicts = Verdicts(outcome, np.ones(NUM_PROMPTS), np.full(NUM_PROMPTS, 0.5))
    judgments = Judgments({"rm": scores}, {"llm": {(0, 1): verdicts}})
    figures = policy_figures([responses("one"), responses("other")], judgments)
    agreement = values(figures, metric="judges_agree")
    assert (agreement.value, agreement.n) == (pytest.approx(9 / 10), 10)


def test_facts_of_tokens():
    lengths, entropy, kl = RANDOM.random((3, NUM_PROMPTS, 2)) + 1
    finished = RANDOM.random((NUM_PROMPTS, 2)) > 0.3
    policy = responses("p", 2, finished=finished, tokens=TokenFacts(lengths, entropy, kl))
    figures = policy_figures([policy], Judgments({}, {}))
    assert values(figures, metric="kl").value == pytest.approx(kl.mean())
    assert values(figures, metric="entropy").value == pytest.approx(entropy.sum() / lengths.sum())
    assert values(figures, metric="length").value == pytest.approx(lengths.mean())
    truncated = values(figures, metric="truncated")
    assert (truncated.value, truncated.n) == (pytest.approx(1 - finished.mean()), 24)
    characters = np.mean([[len(text) for text in row] for row in policy.texts])
    assert values(figures, metric="length_characters").value == pytest.approx(characters)


def test_best_of_n_is_chosen_by_each_judge_and_judged_by_all():
    policy = responses("p", 6)
    scores = {"proxy": [RANDOM.normal(size=(NUM_PROMPTS, 6))]}
    scores["gold"] = [RANDOM.normal(size=(NUM_PROMPTS, 6))]
    figures = policy_figures([policy], Judgments(scores, {}))
    chosen = scores["proxy"][0].argmax(1)
    best = scores["gold"][0][np.arange(NUM_PROMPTS), chosen]
    at_six = values(figures, metric="best_of_6", judge="gold, chosen by proxy")
    assert at_six.value == pytest.approx(best.mean())
    one = values(figures, metric="best_of_1", judge="proxy")
    assert one.value == pytest.approx(scores["proxy"][0].mean())
    sizes = {figure.metric for figure in figures if figure.section == "Best of n"}
    assert sizes == {"best_of_1", "best_of_2", "best_of_4", "best_of_6"}


def test_best_of_n_by_the_first_judge_meets_every_policy_by_the_other_judges():
    policies = [responses("p", 5), responses("q", 2)]
    proxy, gold = (
        [np.round(RANDOM.normal(size=(NUM_PROMPTS, size)), 1) for size in (5, 2)] for _ in "12"
    )
    figures = policy_figures(policies, Judgments({"proxy": proxy, "gold": gold}, {}))
    against = [figure for figure in figures if figure.section == "Best of n against the others"]
    assert {figure.judge for figure in against} == {"gold"}
    for n, opponent, samples, theirs in (
        (2, "q", range(5), gold[1]),
        (5, "q", range(5), gold[1]),
        (2, "p", range(4), gold[0][:, 4:]),  # the last sample is the opponent
        (4, "p", range(4), gold[0][:, 4:]),
    ):
        found = values(against, subject=f"p, best of {n} by proxy", against=opponent)
        outcomes = []
        for prompt, subset in product(range(NUM_PROMPTS), combinations(samples, n)):
            best = max(proxy[0][prompt, list(subset)])
            chosen = [k for k in subset if proxy[0][prompt, k] == best]
            gaps = [gold[0][prompt, k] - score for k in chosen for score in theirs[prompt]]
            outcomes.append(np.mean([0.5 if gap == 0 else gap > 0 for gap in gaps]))
        assert found.value == pytest.approx(np.mean(outcomes))
        assert found.low <= found.value <= found.high
    assert {figure.subject for figure in against if figure.against == "p"} == {
        *(f"p, best of {n} by proxy" for n in (2, 4)),
        "q, best of 2 by proxy",
    }


def characters(prompts, texts):
    assert len(prompts) == len(texts)
    return [len(text) for text in texts]


def test_scores_come_back_in_their_places():
    policies = [responses("one", 3), responses("other", 2)]
    prompts = [SourcedPrompt(f"p{index}", "") for index in range(NUM_PROMPTS)]
    judgments = judge_policies(
        policies,
        prompts,
        {"length": FunctionReward("tests.evaluation.test_policies.characters")},
        {},
    )
    for policy, scores in zip(policies, judgments.scores["length"], strict=True):
        assert np.array_equal(scores, policy.characters)
