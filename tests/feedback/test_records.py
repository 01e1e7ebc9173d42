import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import (
    Comparison,
    Demonstration,
    JudgedGroup,
    PromptRecord,
    Unpaired,
    parse_comparison,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
    parse_unpaired,
)
from lit_rlhf.feedback.meant_fields import unused_fields

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "response": "r"}, Demonstration(prompt="p", response="r")),
        ({"prompt": "p", "completion": "r"}, Demonstration(prompt="p", response="r")),
        ({"prompt": "p", "response": "r", "messages": None, "extra": 1}, Demonstration("p", "r")),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Demonstration((USER,), "ho")),
        ({"messages": [USER, ASSISTANT]}, Demonstration((USER,), (ASSISTANT,))),
        (
            {"prompt": "hi", "messages": [USER, ASSISTANT]},
            Demonstration((USER,), (ASSISTANT,)),
        ),
        (
            {"messages": [USER, ASSISTANT, USER, ASSISTANT, USER]},
            Demonstration((USER,), (ASSISTANT, USER, ASSISTANT, USER)),
        ),
        ({"text": "words"}, Demonstration(prompt="", response="words")),
    ],
)
def test_demonstrations(row, expected):
    assert parse_demonstration(row, "x") == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Comparison("p", "a", "b", 1.0, 1.0)),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.3, "weight": 2},
            Comparison("p", "a", "b", 0.3, 2.0),
        ),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
            Comparison((USER,), "ho", "ho"),
        ),
    ],
)
def test_comparisons(row, expected):
    assert parse_comparison(row, "x") == expected
    assert parse_judgment(row, "x") == expected


def test_judged_groups():
    row = {"prompt": "p", "responses": ["a", "b"], "rankings": [[1, 2], [None, 1]], "weight": 0.5}
    expected = JudgedGroup("p", ("a", "b"), rankings=((1.0, 2.0), (None, 1.0)), weight=0.5)
    assert parse_judged_group(row, "x") == expected
    assert parse_judgment({**row, "chosen": None}, "x") == expected
    rated = {"prompt": "p", "responses": ["a", "b"], "ratings": [[1.5, -2]], "rankings": None}
    assert parse_judged_group(rated, "x") == JudgedGroup("p", ("a", "b"), ratings=((1.5, -2.0),))


def test_prompts_hand_on_their_fields():
    row = {"prompt": "p", "answer": 4, "prompt_id": None}
    assert parse_prompt(row, "x") == PromptRecord("p", {"answer": 4, "prompt_id": None})
    assert parse_prompt({"prompt": [USER]}, "x") == PromptRecord((USER,), {})


GROUP = {"prompt": "p", "responses": ["a", "b"]}
# parser, row, the field that the error names, what it expects there
BAD = [
    (parse_demonstration, {}, "prompt", "'prompt' and 'response', or 'messages'"),
    (parse_demonstration, {"prompt": "p"}, "messages", "found the fields: prompt"),
    (parse_demonstration, {"prompt": "p", "response": 3}, "response", "text or a list"),
    (parse_demonstration, {"response": "r"}, "prompt", "found the fields: response"),
    (parse_demonstration, {"messages": [USER]}, "messages", "a turn of the role 'assistant'"),
    (parse_demonstration, {"messages": [ASSISTANT]}, "messages", "a turn before the assistant's"),
    (parse_demonstration, {"messages": "hi"}, "messages", "a list of chat messages"),
    (parse_demonstration, {"text": 3}, "text", "expected text"),
    (parse_comparison, {"prompt": "p", "chosen": "a"}, "rejected", "found the fields: chosen, pr"),
    (
        parse_comparison,
        {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.5},
        "probability",
        "a number from 0 to 1, found 1.5",
    ),
    (
        parse_comparison,
        {"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1},
        "weight",
        "a number of 0 or more, found -1",
    ),
    (parse_judged_group, {"prompt": "p"}, "responses", "found the fields: prompt"),
    (parse_judged_group, {"prompt": "p", "responses": "ab"}, "responses", "a list of two"),
    (parse_judged_group, {"prompt": "p", "responses": ["a"]}, "responses", "two responses or more"),
    (parse_judged_group, GROUP, "rankings", "either 'rankings' or 'ratings'"),
    (parse_judged_group, {**GROUP, "rankings": [[1, 2]], "ratings": [[1, 2]]}, "ratings", "either"),
    (parse_judged_group, {**GROUP, "rankings": []}, "rankings", "one labeler or more"),
    (parse_judged_group, {**GROUP, "rankings": [1, 2]}, "rankings[0]", "a list of 2 numbers"),
    (parse_judged_group, {**GROUP, "ratings": [[1, 2], [1]]}, "ratings[1]", "a list of 2 numbers"),
    (parse_judged_group, {**GROUP, "ratings": [[1, "2"]]}, "ratings[0]", "a finite number"),
    (
        parse_judged_group,
        {"prompt": "p", "responses": ["a", 3], "ratings": [[1, 2]]},
        "responses[1]",
        "text",
    ),
    (parse_judgment, {"prompt": "p"}, "chosen", "or with 'responses'"),
    (parse_judgment, {"prompt": "p", "rejected": "b"}, "chosen", "'chosen' and 'rejected'"),
    (parse_prompt, {"text": "p"}, "prompt", "found the fields: text"),
    (parse_prompt, {"prompt": 3}, "prompt", "text or a list of chat messages"),
    (parse_prompt, {"prompt": [ASSISTANT]}, "prompt", "ends before the assistant's turn"),
]


@pytest.mark.parametrize(("parse", "row", "field", "expected"), BAD)
def test_a_bad_row_is_one_error_with_place_field_and_expectation(parse, row, field, expected):
    with pytest.raises(DataError) as caught:
        parse(row, "train.jsonl:12")
    message = str(caught.value)
    assert message.startswith("train.jsonl:12: ")
    assert f"'{field}'" in message
    assert expected in message


BRIEF = {"role": "system", "content": "Be brief."}
PAIR = {"prompt": "hi", "chosen": "a", "rejected": "b"}


def test_a_system_text_beside_the_prompt_is_its_first_turn():
    beside = {"system": "Be brief."}
    expected = (BRIEF, USER)
    assert parse_comparison({**PAIR, **beside}, "x").prompt == expected
    assert parse_comparison({**PAIR, "prompt": [USER], **beside}, "x").prompt == expected
    assert parse_comparison({**PAIR, "prompt": [BRIEF, USER], **beside}, "x").prompt == expected
    group = {"prompt": "hi", "responses": ["a", "b"], "ratings": [[1, 2]]}
    assert parse_judged_group({**group, "system_prompt": "Be brief."}, "x").prompt == expected
    assert parse_demonstration({"prompt": "hi", "response": "r", **beside}, "x").prompt == expected
    chat = parse_demonstration({"messages": [USER, ASSISTANT], **beside}, "x")
    assert chat == Demonstration((BRIEF, USER), (ASSISTANT,))
    prompt = parse_prompt({"prompt": "hi", **beside}, "x")
    assert (prompt.prompt, prompt.fields) == (expected, beside)
    assert parse_comparison({**PAIR, "system": ""}, "x").prompt == "hi"
    with pytest.raises(DataError, match="field 'system': expected the same text as the chat's own"):
        parse_comparison({**PAIR, "prompt": [{**BRIEF, "content": "Shout."}, USER], **beside}, "x")


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"),
                                   ("chosenScore", "rejectedScore"),
                                   ("chosen-rating", "rejected-rating"),
                                   ("reward_chosen", "reward_rejected"),
                                   ("chosen_overall_score", "rejected_overall_score")])  # fmt: skip
def test_scores_beside_a_comparison_make_ties_and_show_contradictions(names):
    def scored(chosen, rejected, **beside):
        row = {**PAIR, names[0]: chosen, names[1]: rejected, **beside}
        return parse_comparison(row, "x").probability

    assert (scored(8.0, 7.5), scored(8.0, 8.0), scored(8.0, None)) == (1.0, 0.5, 1.0)
    assert scored(1, 2, probability=0.9) == 0.9
    with pytest.raises(DataError, match=rf"x: '{names[0]}' 4 is less than '{names[1]}' 4.5"):
        scored(4, 4.5)


def test_a_weight_that_drowns_all_others_is_refused():
    assert parse_comparison({**PAIR, "weight": 1e6}, "x").weight == 1e6
    with pytest.raises(DataError, match=r"field 'weight': .* at most 1e\+06.*found 1e\+300"):
        parse_comparison({**PAIR, "weight": 1e300}, "x")


def test_labels_are_unpaired_judgments():
    row = {"prompt": "p", "completion": "c", "label": True}
    assert parse_unpaired(row, "x") == Unpaired("p", "c", is_good=True)
    assert parse_demonstration(row, "x") == Demonstration("p", "c")
    with pytest.raises(DataError, match="field 'label': False says that the answer is a bad one"):
        parse_demonstration({**row, "label": False}, "x")
    with pytest.raises(DataError, match="expected 'prompt', 'completion' and 'label'"):
        parse_unpaired({**row, "label": "good"}, "x")
    for label in (0.0, 1.0):  # as tables have it that have gaps
        assert parse_unpaired({**row, "label": label}, "x").is_good is bool(label)
    with pytest.raises(DataError, match=r"field 'text': .* not such a list written as text"):
        parse_demonstration({"text": '[{"role": "user", "content": "hi"}]'}, "x")
    # Another meaning of the word: a class of the text.
    assert parse_demonstration({"text": "t", "label": 0}, "x").response == "t"


def test_fields_that_look_meant_are_named_where_nothing_uses_them():
    row = {**PAIR, "margin": 2, "score_gpt": 1, "weight": 1, "topic": "t", "train": None}
    assert unused_fields(row, "judgment") == ["margin", "score_gpt"]
    assert unused_fields({**row, "system": "s"}, "demonstration") == [
        "margin", "score_gpt", "weight"
    ]  # fmt: skip
    assert unused_fields(row, "prompt") == []
    said = {"prompt": "p", "response": "r"}
    for field in (
        *("label", "kto_tag", "is_correct", "isCorrect", "human_rating", "reward", "context"),
        *("good", "reasoning", "chat_template_kwargs"),
    ):
        assert unused_fields({**said, field: -1}, "demonstration") == [field]
    for field in ("score_a", "chosen_rank", "better_response_id", "label", "is_tie"):
        assert unused_fields({**PAIR, field: 2}, "judgment") == [field]
    for field in ("source", "id", "language", "tools", "functions", "system"):
        assert unused_fields({**said, field: "x"}, "demonstration") == []
    assert unused_fields({**said, "label": True}, "demonstration") == []
    rated = {**PAIR, "reward_chosen": 2, "reward_rejected": 1}
    assert unused_fields(rated, "judgment") == []


def test_texts_that_others_take_the_place_of_are_named():
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    for row, named in (
        ({"prompt": "p", "text": "r"}, ["prompt"]),
        ({"prompt": "p", "text": "p and r"}, []),
        ({"prompt": "q", "messages": turns}, ["prompt"]),
        ({"prompt": "p", "messages": turns}, []),
        ({"prompt": "p", "response": "r", "completion": "s", "messages": turns}, ["completion"]),
        ({"prompt": turns[:1], "completion": turns[1:], "text": "p"}, []),
    ):
        assert unused_fields(row, "demonstration") == named
