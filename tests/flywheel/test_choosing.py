"""From candidate responses to tasks: the random share, the chosen ones, and what they are told."""

import json
from collections import Counter

import numpy as np
import pytest

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.flywheel.choosing import Choice, Sampled, choose_tasks, read_sampled
from lit_rlhf.flywheel.selection import DeltaUCB, RandomPairs
from lit_rlhf.flywheel.uncertainty import HeadsConfig

HEADS = HeadsConfig(num_heads=5, width=16, num_steps=60)
SAMPLED = [
    Sampled(f"p {p}", tuple("x" * (1 + (p + 3 * r) % 11) for r in range(5))) for p in range(8)
]
FIRST_BETTER = Judgment("judged", (1, 2))


def length_features(prompts, responses):
    """Return features of which one is the length."""
    return np.array([[len(response), 1.0] for response in responses], float)


def judged(number=20):
    """People who like it long."""
    return [
        JudgedTask(f"q {place}", ("x" * (3 + place % 7), "x"), (FIRST_BETTER,) * 3, None, {})
        for place in range(number)
    ]


def shares(tasks):
    return Counter((task.metadata["share"], task.metadata["chosen_by"]) for task in tasks)


def test_without_a_reward_model_all_is_random_and_a_share_is_marked_so():
    tasks = choose_tasks(SAMPLED, [], None, Choice(num_tasks=20, heads=HEADS), seed=1)
    assert shares(tasks) == {("random", "RandomPairs"): 4, ("chosen", "RandomPairs"): 16}
    assert all("bounds" not in task.metadata for task in tasks)


def test_a_share_is_random_and_the_rest_is_chosen():
    tasks = choose_tasks(
        SAMPLED, judged(), length_features, Choice(num_tasks=20, heads=HEADS), seed=1
    )
    assert shares(tasks) == {("random", "RandomPairs"): 4, ("chosen", "InfoMax"): 16}
    asked = [(task.prompt, frozenset(task.responses)) for task in tasks]
    assert len(set(asked)) == 20
    for task in tasks:
        (sampled,) = [one for one in SAMPLED if one.prompt == task.prompt]
        assert set(task.responses) <= set(sampled.responses)
        assert task.judgments == ()


def test_the_heads_learn_from_what_was_judged():
    choice = Choice(DeltaUCB(), num_tasks=16, random_share=0.05, heads=HEADS)
    tasks = choose_tasks(SAMPLED, judged(), length_features, choice, seed=1)
    chosen = [task for task in tasks if task.metadata["share"] == "chosen"]
    means = [
        [lower_mean_upper[1] for lower_mean_upper in task.metadata["bounds"]] for task in chosen
    ]
    longer_is_better = [
        (mean[0] > mean[1]) == (len(task.responses[0]) > len(task.responses[1]))
        for mean, task in zip(means, chosen, strict=True)
    ]
    assert np.mean(longer_is_better) > 0.9
    # Best against worst: the pairs differ more in length than random ones.
    gaps = [abs(len(task.responses[0]) - len(task.responses[1])) for task in chosen[:8]]
    assert np.mean(gaps) > 6


def test_the_random_share_does_not_depend_on_the_acquisition():
    random_ones = [
        [task for task in choose_tasks(
            SAMPLED, judged(), length_features, Choice(one, 20, heads=HEADS), seed=3
        ) if task.metadata["share"] == "random"]
        for one in (DeltaUCB(), RandomPairs())
    ]  # fmt: skip
    assert random_ones[0] == random_ones[1]


def test_length_matching_is_of_the_chosen_share():
    choice = Choice(num_tasks=30, max_length_gap=0.2, heads=HEADS)
    tasks = choose_tasks(SAMPLED, judged(), length_features, choice, seed=1)
    gaps = {"random": [], "chosen": []}
    for task in tasks:
        one, other = map(len, task.responses)
        gaps[task.metadata["share"]].append(abs(one - other) / max(one, other))
    assert max(gaps["chosen"]) <= 0.2
    assert max(gaps["random"]) > 0.2


def test_fewer_pairs_than_wanted_are_all_asked():
    tasks = choose_tasks(SAMPLED[:1], [], None, Choice(num_tasks=100), seed=0)
    assert len(tasks) == 10


def test_candidates_are_read_with_their_place(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [{"prompt": "Hi", "responses": ["a", "b"]}, {"prompt": "Ho", "responses": ["c"]}]
    path.write_text(json.dumps(rows[0]) + "\n")
    assert read_sampled(str(path)) == [Sampled("Hi", ("a", "b"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"samples.jsonl:2: field 'responses'.*two responses or more"
    ):
        read_sampled(str(path))


def test_without_a_random_share_nothing_could_be_measured():
    with pytest.raises(ConfigError, match=r"choice.random_share is 0"):
        Choice(random_share=0)


def test_something_is_always_measured():
    choice = Choice(num_tasks=2, random_share=0.05)
    assert shares(choose_tasks(SAMPLED, [], None, choice, seed=1))["random", "RandomPairs"] == 1


def test_features_that_are_no_numbers_are_refused():
    def broken(prompts, responses):
        return np.where(np.arange(len(responses))[:, None] == 3, np.nan, 1.0)

    with pytest.raises(DataError, match="bounds of the scores are no finite numbers"):
        choose_tasks(SAMPLED, judged(), broken, Choice(num_tasks=4, heads=HEADS), seed=1)


def test_no_pair_is_asked_again():
    """Nor turned round: of what a reward model has seen, the random share says nothing."""
    first = choose_tasks(SAMPLED, [], None, Choice(num_tasks=40), seed=1)
    said = [
        task._replace(responses=task.responses[::-1], judgments=(FIRST_BETTER,)) for task in first
    ]
    again = choose_tasks(SAMPLED, said, None, Choice(num_tasks=100), seed=1)
    assert len(again) == 8 * 10 - 40
    asked = [
        {(task.prompt, frozenset(task.responses)) for task in tasks} for tasks in (first, again)
    ]
    assert not asked[0] & asked[1]


def test_nothing_to_ask_about_is_said():
    with pytest.raises(DataError, match="no prompt has two different responses that nobody"):
        choose_tasks([Sampled("p", ("same", "same"))], [], None, Choice(), seed=1)
