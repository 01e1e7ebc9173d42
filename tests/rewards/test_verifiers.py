import math

import pytest

from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.rewards import ExactMatch, LengthWithin, RegexMatch
from tests.rewards.samples import sample_batch


def score(source, *responses, **fields):
    """Score responses; each field has one value a response, or is missing where it is None."""
    rows = [
        {name: values[row] for name, values in fields.items() if values[row] is not None}
        for row in range(len(responses))
    ]
    samples = sample_batch(["p"] * len(responses), list(responses))._replace(fields=rows)
    scores = source(samples.prompts, samples.responses, samples).tolist()
    return [None if math.isnan(one) else one for one in scores]


def test_an_exact_match_is_one_but_for_white_space():
    responses = [" New\n  York ", "new york", "York", ""]
    assert score(ExactMatch(), *responses, answer=["New York"] * 4) == [1, 0, 0, 0]
    source = ExactMatch("city", ignore_case=True)
    assert score(source, *responses, city=[["LA", "NEW york"]] * 4) == [1, 1, 0, 0]
    assert score(ExactMatch(), "4", "4", answer=[4, "4.0"]) == [1, 0]


def test_the_answer_is_found_in_response_and_field():
    source = ExactMatch(pattern=r"#### (-?\d+)")
    responses = ["#### 1, no: #### 2", "2", "so #### 2", "#### 2"]
    assert score(source, *responses, answer=["2", "2", "because #### 2", "#### 3"]) == [1, 0, 1, 0]
    assert score(ExactMatch(pattern=r"\w+$"), "it is Paris", answer=["Paris"]) == [1]


def test_a_record_without_the_field_leaves_its_response_out():
    assert score(ExactMatch(), "4", "", answer=["4", None]) == [1, None]
    with pytest.raises(RewardError, match=r"`answer` .* none has it \(they have: solution\)"):
        score(ExactMatch(), "4", solution=["4"])
    with pytest.raises(RewardError, match="they have: none"):
        ExactMatch()(["p"], ["4"])
    assert ExactMatch().abstains


def test_a_regular_expression_is_found_or_is_the_whole():
    responses = ["<think>so\nit is</think> 4", "x <think></think> 4", "4"]
    assert score(RegexMatch(r"(?s)<think>.*</think>"), *responses) == [1, 1, 0]
    assert score(RegexMatch(r"(?s)<think>.*</think> \d", whole=True), *responses) == [1, 0, 0]
    assert score(RegexMatch("4", whole=True), " 4 \n", "44") == [1, 0]


def test_a_length_within_bounds_is_one_and_falls_beyond():
    assert score(LengthWithin(most=3), "abc", "abcd", "") == [1, 0, 1]
    assert score(LengthWithin(2, 3, slack=4), "", "a", "ab", "abcd", "a" * 9) == [
        0.5, 0.75, 1, 0.75, 0,
    ]  # fmt: skip
    assert score(LengthWithin(2, unit="words"), "one", "one two  three") == [0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegexMatch("("), r"RegexMatch\.pattern: '\(' is no regular expression"),
        (lambda: ExactMatch(pattern="["), r"ExactMatch\.pattern"),
        (LengthWithin, "allows every length"),
        (lambda: LengthWithin(5, 4), r"most is 4; it must be at least 5"),
        (lambda: LengthWithin(1, slack=-1), r"slack is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
