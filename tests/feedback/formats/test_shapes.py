"""Each public shape by hand-made rows, with the label that its trap would get wrong."""

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import judged_pairs, parse_judged_group
from lit_rlhf.feedback.exchange import row_of
from lit_rlhf.feedback.formats import find_format, read_rows
from lit_rlhf.feedback.judgments import Judgment

HI = {"role": "user", "content": "Hi"}


def says(text):
    return {"role": "assistant", "content": text}


def read(name, *rows):
    """Return the tasks that rows hold; they must be found to have the format."""
    assert {find_format(row, "x") for row in rows} == {name}
    found = [read.content for read in read_rows([(row, "x") for row in rows], name)]
    for error in found:
        if isinstance(error, DataError):
            raise error
    return found


def ranked(*ranks, **details):
    is_tie = len(ranks) == 2 and ranks[0] == ranks[1]
    return Judgment("tie" if is_tie else "judged", ranks=ranks, **details)


def rated(*ratings, **details):
    return Judgment("judged", ratings=ratings, **details)


ARENA = {
    "question_id": "q", "model_a": "x", "model_b": "y", "winner": "model_b", "judge": "u1",
    "conversation_a": [HI, says("a")], "conversation_b": [HI, says("b")], "turn": 1,
    "anony": True, "language": "English", "tstamp": 1.0,
}  # fmt: skip
MTBENCH = {key: ARENA[key] for key in ARENA if key not in {"anony", "language", "tstamp"}}
SECOND = [{"role": "user", "content": "More"}, says("end")]
KAGGLE = {
    "id": 1, "model_a": "x", "model_b": "y", "prompt": '["Hi"]', "response_a": '["a"]',
    "response_b": '["b"]', "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1,
}  # fmt: skip
HELPSTEER2P = {
    "split": "train", "prompt": "Hi", "response_1": "a", "response_2": "b",
    "preference_strength": 2, "preference_statement": "...",
}  # fmt: skip
HELPSTEER3 = {
    "domain": "general", "context": [HI], "response1": "a", "response2": "b",
    "overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "why"}],
}  # fmt: skip
SHP = {
    "post_id": "p", "history": "Hi", "score_A": 9, "score_B": 3, "human_ref_A": "a",
    "human_ref_B": "b", "labels": 1, "score_ratio": 3.0,
}  # fmt: skip
MULTIPREF = {
    "comparison_id": "c", "text": "Hi", "model_a": "x", "completion_a": "a", "model_b": "y",
    "completion_b": "b",
    "normal_worker_annotations": [
        {"evaluator": "n1", "overall_pref": "A-is-slightly-better", "time_spent": 41},
        {"evaluator": "n2", "overall_pref": "Tie"},
    ],
    "expert_worker_annotations": [{"evaluator": "e1", "overall_pref": "B-is-clearly-better"}],
}  # fmt: skip
NESTED = {
    "id": "r1", "fields": {"prompt": "Hi", "r1": "a", "r2": "b"}, "metadata": {},
    "suggestions": {"pref": {"value": ["r1", "r2"], "agent": "judge"}},
    "responses": {"pref": [{"value": ["r2", "r1"], "user_id": "u-1"}]},
}  # fmt: skip
FLAT = {
    "id": "r1", "prompt": "Hi", "r1": "a", "r2": "b",
    "pref.responses": [["r2", "r1"], ["r1", "r2"], ["r1", "r2"]],
    "pref.responses.users": ["u-1", "u-2", "u-3"],
    "pref.responses.status": ["submitted", "discarded", "draft"],
    "pref.suggestion": ["r1", "r2"], "pref.suggestion.agent": "judge",
}  # fmt: skip
REST = {
    "fields": {"prompt": "Hi", "r1": "a", "r2": "b"},
    "responses": [{"values": {"pref": {"value": [{"value": "r2", "rank": 1},
                                                 {"value": "r1", "rank": 1}]}},
                   "status": "submitted", "user_id": "u-1"}],
}  # fmt: skip
FIRST_VERSION = {
    "prompt": "Hi", "answer": "a", "external_id": "7",
    "stars": [{"user_id": "u-1", "value": 4, "status": "submitted"}],
}  # fmt: skip
LABEL_STUDIO = {
    "id": 7, "data": {"prompt": "Hi", "a": "A", "b": "B"}, "predictions": [],
    "annotations": [
        {"id": 1, "completed_by": {"id": 3, "email": "x@y.z"}, "was_cancelled": False,
         "ground_truth": True, "lead_time": 8.2,
         "result": [{"from_name": "pw", "to_name": "b,a", "type": "pairwise",
                     "value": {"selected": "left"}},
                    {"from_name": "why", "type": "textarea", "value": {"text": ["short"]}}]},
        {"id": 2, "completed_by": 4, "was_cancelled": True, "result": []},
    ],
}  # fmt: skip


def label_studio(data, *results):
    annotations = [{"completed_by": i, "result": [result]} for i, result in enumerate(results, 1)]
    return {"id": 1, "data": {"prompt": "Hi", **data}, "annotations": annotations}


ITEMS = {
    "items": [{"id": "wiki", "body": "W"}, {"id": "mdn", "body": "M"}, {"id": "so", "body": "S"}]
}
OASST = {
    "message_tree_id": "t", "tree_state": "ready_for_export",
    "prompt": {"message_id": "t", "text": "Hi", "role": "prompter", "replies": [
        {"message_id": "a", "text": "A", "role": "assistant", "rank": 1, "replies": [
            {"message_id": "q", "text": "More", "role": "prompter", "replies": [
                {"message_id": "c", "text": "C", "role": "assistant", "rank": 0, "replies": []},
                {"message_id": "d", "text": "D", "role": "assistant", "rank": 1, "replies": []},
            ]}]},
        {"message_id": "b", "text": "B", "role": "assistant", "rank": 0, "replies": []},
        {"message_id": "x", "text": "X", "role": "assistant", "rank": None, "replies": []},
        {"message_id": "y", "text": "Y", "role": "assistant", "rank": 2, "deleted": True},
    ]},
}  # fmt: skip
PRISM = {
    "conversation_id": "c1", "user_id": "user1", "conversation_type": "unguided",
    "conversation_history": [
        {"turn": 0, "role": "user", "content": "Hi"},
        {"turn": 0, "role": "model", "content": "a", "score": 71, "if_chosen": False},
        {"turn": 0, "role": "model", "content": "b", "score": 20, "if_chosen": True},
        {"turn": 1, "role": "user", "content": "More"},
        {"turn": 1, "role": "model", "content": "c", "score": None, "if_chosen": True},
        {"turn": 1, "role": "model", "content": "d", "score": 2, "if_chosen": False},
    ],
}  # fmt: skip
UTTERANCE = {"interaction_id": "i", "user_id": "u", "user_prompt": "Hi", "if_chosen": True}
COMMUNITY = {
    "conversation_id": "c", "annotator_id": "a", "first_turn_prompt": "Hi",
    "first_turn_response_a": "a<|end_of_text|>", "first_turn_response_b": "b<|end_of_text|>",
    "first_turn_response_c": "a", "first_turn_response_d": "d",
    "first_turn_preferred_response": "response_b", "first_turn_feedback": "best",
    "second_turn_prompt": "More", "second_turn_response_a": "e", "second_turn_response_b": "f",
    "second_turn_preferred_response": "response_a",
}  # fmt: skip


def ultrafeedback(*completions):
    return {"instruction": "Hi", "models": ["m"], "completions": list(completions)}


def completion(text, *ratings, overall=10):
    annotations = {f"aspect{i}": {"Rating": rating} for i, rating in enumerate(ratings)}
    return {"model": "m", "response": text, "annotations": annotations, "overall_score": overall}


# format, rows, responses, judgments
CASES = {
    "hh": ("hh", [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
                   "rejected": "\n\nHuman: Hi\n\nAssistant: No"}], ("Hello", "No"), [ranked(1, 2)]),
    "argilla nested": ("argilla", [NESTED], ("a", "b"), [ranked(2, 1, labeler="u-1")]),
    "argilla flattened: a draft is dropped, a discarded answer is a skip": (
        "argilla", [FLAT], ("a", "b"),
        [ranked(2, 1, labeler="u-1"), Judgment("skip", labeler="u-2")]),
    "argilla by REST keeps ties": (
        "argilla", [REST], ("a", "b"), [Judgment("judged", ranks=(1, 1), labeler="u-1")]),
    "argilla 1 rates": ("argilla", [FIRST_VERSION], ("a",), [rated(4.0, labeler="u-1")]),
    "label studio: sides by to_name": (
        "label_studio", [LABEL_STUDIO], ("B", "A"),
        [ranked(1, 2, labeler="x@y.z", is_gold=True, duration_s=8.2, comment="short"),
         Judgment("skip", labeler="4")]),
    "label studio ranks": (
        "label_studio",
        [label_studio(ITEMS, {"type": "ranker", "value": {"ranker": ["mdn", "so", "wiki"]}},
                      {"type": "ranker", "value": {"ranker": {"best": ["mdn"], "_": ["wiki"]}}})],
        ("W", "M", "S"), [ranked(3, 1, 2, labeler="1"), ranked(None, 1, None, labeler="2")]),
    "label studio rates": (
        "label_studio", [label_studio({"a": "A"}, {"type": "rating", "to_name": "a",
                                                   "value": {"rating": 4}})],
        ("A",), [rated(4.0, labeler="1")]),
    "label studio choices": (
        "label_studio",
        [label_studio({"a": "A", "b": "B"},
                      {"type": "choices", "toName": ["a", "b"], "value": {"choices": ["Tie"]}},
                      {"type": "choices", "toName": ["a", "b"], "value": {"choices": ["b"]}})],
        ("A", "B"), [ranked(1, 1, labeler="1"), ranked(2, 1, labeler="2")]),
    "label studio as JSON_MIN": (
        "label_studio",
        [{"id": 7, "prompt": "Hi", "a": "A", "b": "B", "pw": "right", "annotator": 3,
          "annotation_id": 1, "lead_time": 8.2}],
        ("A", "B"), [ranked(2, 1, labeler="3", duration_s=8.2)]),
    "oasst: 0 is best, deleted answers are none": (
        "oasst", [OASST], ("A", "B", "X"), [ranked(2, 1, None)]),
    "helpsteer2: two rows are a pair": (
        "helpsteer2",
        [{"prompt": "Hi", "response": "a", "helpfulness": 1, "correctness": 4, "coherence": 4},
         {"prompt": "Hi", "response": "b", "helpfulness": 3, "correctness": 4, "coherence": 4}],
        ("a", "b"), [rated(1.0, 3.0)]),
    "helpsteer2 preference: positive is the second": (
        "helpsteer2_preference", [HELPSTEER2P], ("a", "b"), [ranked(2, 1, strength=2)]),
    "helpsteer2 preference by labeler": (
        "helpsteer2_preference",
        [{**HELPSTEER2P, "all_preferences_unprocessed": [{"strength": -1, "statement": "s"},
                                                         {"strength": 3, "statement": "t"}]}],
        ("a", "b"), [ranked(1, 2, strength=1, comment="s"), ranked(2, 1, strength=3, comment="t")]),
    "helpsteer3: negative is the first": (
        "helpsteer3", [HELPSTEER3], ("a", "b"), [ranked(1, 2, strength=2, comment="why")]),
    "helpsteer3: 0 is a tie": (
        "helpsteer3", [{**HELPSTEER3, "overall_preference": 0, "individual_preference": []}],
        ("a", "b"), [ranked(1, 1)]),
    "ultrafeedback: ratings are texts, some not given; overall_score is not read": (
        "ultrafeedback",
        [ultrafeedback(completion("a", "4", "N/A", overall=85), completion("b", "5", "4"),
                       completion("c", "N/A"))],
        ("a", "b", "c"), [rated(4.0, 4.5, None)]),
    "shp: 1 is the first": ("shp", [SHP], ("a", "b"), [ranked(1, 2)]),
    "shp: 0 is the second": ("shp", [{**SHP, "labels": 0}], ("a", "b"), [ranked(2, 1)]),
    "arena": ("arena", [ARENA], ("a", "b"), [ranked(2, 1, labeler="u1")]),
    "arena: both bad is not a tie": (
        "arena", [{**ARENA, "winner": "tie (bothbad)"}], ("a", "b"),
        [Judgment("both_bad", ranks=(1, 1), labeler="u1")]),
    "arena 140k: parts": (
        "arena",
        [{"id": "1", "evaluation_session_id": "s", "winner": "both_bad",
          "conversation_a": [{**HI, "content": [{"type": "text", "text": "Hi"}]}, says("a")],
          "conversation_b": [HI, {**says(""), "content": [{"type": "text", "text": "b"}]}]}],
        ("a", "b"), [Judgment("both_bad", ranks=(1, 1))]),
    "arena at Kaggle": ("arena_kaggle", [KAGGLE], ("a", "b"), [ranked(1, 1)]),
    "mt-bench: rows hold both turns": (
        "mtbench",
        [{**MTBENCH, "conversation_a": [HI, says("a"), *SECOND],
          "conversation_b": [HI, says("b"), *SECOND]}],
        ("a", "b"), [ranked(2, 1, labeler="u1")]),
    "multipref": (
        "multipref", [MULTIPREF], ("a", "b"),
        [ranked(1, 2, strength=1, labeler="n1", duration_s=41.0), ranked(1, 1, labeler="n2"),
         ranked(2, 1, strength=2, labeler="e1")]),
    "prism: by score, not by what was followed": (
        "prism", [PRISM], ("a", "b"), [rated(71.0, 20.0, labeler="user1")]),
    "prism utterances": (
        "prism_utterances",
        [{**UTTERANCE, "model_response": "a", "score": 5}, {**UTTERANCE, "model_response": "b",
                                                            "score": 90}],
        ("a", "b"), [rated(5.0, 90.0, labeler="u")]),
    "community alignment: ends and twins": (
        "community_alignment", [COMMUNITY], ("a", "b", "d"),
        [ranked(None, 1, None, labeler="a", comment="best", side_order=(0, 1, 2))]),
    "potato": (
        "potato", [{"prompt": "Hi", "responses": ["a", "b"], "user_id": "u",
                    "preference": {"selection": "B"}}],
        ("a", "b"), [ranked(2, 1, labeler="u")]),
    "potato's scale: negative is the first": (
        "potato", [{"prompt": "Hi", "responses": ["a", "b"], "preference": {"scale_value": "-2"}}],
        ("a", "b"), [ranked(1, 2, strength=2)]),
    "potato's order": (
        "potato", [{"prompt": "Hi", "responses": ["a", "b", "c", "d"],
                    "label_annotations": {"order": {"rank_order": "B,D=A,C"}}}],
        ("a", "b", "c", "d"), [ranked(2, 1, 3, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_shape_is_found_and_read(case):
    name, rows, responses, judgments = CASES[case]
    task = read(name, *rows)[0]
    assert list(task.prompt) == [HI]
    assert task.responses == responses
    assert list(task.judgments) == judgments


def test_a_tie_breaks_no_order_that_a_tool_wrote_in_one_list():
    one_list = {"type": "ranker", "value": {"ranker": {"rank": ["so", "wiki", "mdn"]}}}
    (task,) = read("label_studio", label_studio(ITEMS, one_list))
    assert task.judgments[0].ranks == (2, 3, 1)


def test_annotators_who_saw_another_order_judged_one_task():
    turned = {**COMMUNITY, "annotator_id": "b", "first_turn_preferred_response": "response_c"}
    for slot, text in zip("abcd", "dabd", strict=True):
        turned[f"first_turn_response_{slot}"] = text
    first, second = (read("community_alignment", row)[0] for row in (COMMUNITY, turned))
    assert second[:2] == first[:2]
    assert second.judgments[0].ranks == first.judgments[0].ranks
    assert second.judgments[0].side_order == (2, 0, 1)


def test_a_person_who_ranked_one_answer_that_is_left_compared_none():
    events = {"ranking": [{"user_id": "u", "ranked_message_ids": ["a", "gone"]},
                          {"user_id": "v", "ranked_message_ids": ["b", "a"]}]}  # fmt: skip
    tree = {**OASST, "prompt": {**OASST["prompt"], "events": events}}
    assert [said.labeler for said in read("oasst", tree)[0].judgments] == ["v"]


def test_argilla_keeps_comments_suggestions_and_whole_discards():
    answers = {"pref": [{"value": ["r2", "r1"], "user_id": "u"}],
               "why": [{"value": "politer", "user_id": "u"}]}  # fmt: skip
    suggestions = {"pref": {"value": ["r1", "r2"], "agent": "judge"}}
    (task,) = read("argilla", {**NESTED, "responses": answers, "suggestions": suggestions})
    assert task.judgments == (ranked(2, 1, labeler="u", comment="why: politer"),)
    assert task.metadata["suggestions"] == suggestions
    discarded = {"values": None, "status": "discarded", "user_id": "u-2"}
    (task,) = read("argilla", {**REST, "responses": [*REST["responses"], discarded]})
    assert task.judgments[-1] == Judgment("skip", labeler="u-2")


def test_two_schemes_of_potato_are_two_questions():
    schemes = {"helpful": {"selection": "A"}, "harmless": {"scale_value": 2}}
    row = {"prompt": "Hi", "responses": ["a", "b"], "label_annotations": schemes}
    assert [(task.question, task.judgments[0].ranks) for task in read("potato", row)] == [
        ("helpful", (1, 2)), ("harmless", (2, 1)),
    ]  # fmt: skip


def test_a_rating_that_is_no_number_is_none():
    (task,) = read("ultrafeedback", ultrafeedback(completion("a", "nan"), completion("b", "3")))
    assert task.judgments[0].ratings == (None, 3.0)


# The sign conventions: which response a row prefers, whatever its number says.
SIGNS = [
    ("helpsteer2_preference", {**HELPSTEER2P, "preference_strength": 1}, 1),
    ("helpsteer3", {**HELPSTEER3, "individual_preference": [{"score": 1}]}, 1),
    ("helpsteer3", {**HELPSTEER3, "individual_preference": None, "overall_preference": -1}, 0),
    ("potato", {"prompt": "Hi", "responses": ["a", "b"], "p": {"scale_value": 1}}, 1),
    ("shp", {**SHP, "labels": True}, 0),
    ("shp", {**SHP, "labels": 0}, 1),
    ("oasst", OASST, 1),
    ("argilla", NESTED, 1),
    ("arena", {**ARENA, "winner": "model_a"}, 0),
    ("arena_kaggle", {**KAGGLE, "winner_model_b": 1.0, "winner_tie": 0.0}, 1),
    ("multipref", {**MULTIPREF, "normal_worker_annotations": [
        {"evaluator": "n", "overall_pref": "A-is-clearly-better"}],
        "expert_worker_annotations": None}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "better"), SIGNS)
def test_the_sign_of_a_preference(name, row, better):
    (pair,) = judged_pairs(parse_judged_group(row_of(read(name, row)[0]), "x"))[:1]
    assert (pair.chosen, pair.probability) == (better, 1.0)


def test_two_questions_about_one_pair_are_two_tasks():
    both = {**NESTED, "responses": {
        "helpful": [{"value": ["r2", "r1"], "user_id": "u-1"}],
        "harmless": [{"value": ["r1", "r2"], "user_id": "u-1"}]}}  # fmt: skip
    found = read("argilla", both)
    assert [(task.question, task.judgments[0].ranks) for task in found] == [
        ("helpful", (2, 1)), ("harmless", (1, 2)),
    ]  # fmt: skip
    result = {"type": "pairwise", "from_name": "harmless", "to_name": "a,b",
              "value": {"selected": "left"}}  # fmt: skip
    (task,) = read("label_studio", label_studio({"a": "A", "b": "B"}, result))
    assert task.question == "harmless"


def test_later_turns_are_tasks_of_their_own():
    more = {"role": "user", "content": "More"}
    first, second = read("oasst", OASST)
    assert list(second.prompt) == [HI, says("A"), more]
    assert second.responses == ("C", "D")
    first, second = read("prism", PRISM)
    assert list(second.prompt) == [HI, says("b"), more]  # the one that was followed
    assert second.judgments[0].ratings == (None, 2.0)
    first, second = read("community_alignment", COMMUNITY)
    assert list(second.prompt) == [HI, says("b"), more]
    assert (second.responses, second.judgments[0].ranks) == (("e", "f"), (1, None))
    assert first.metadata["turn"] == "first"


def test_people_before_what_they_agreed_on_in_a_tree():
    events = {"ranking": [
        {"user_id": "u", "ranked_message_ids": ["a", "b"], "not_rankable": False},
        {"user_id": "v", "ranked_message_ids": [], "not_rankable": True},
    ]}  # fmt: skip
    tree = {**OASST, "prompt": {**OASST["prompt"], "events": events}}
    first = read("oasst", tree)[0]
    assert list(first.judgments) == [
        ranked(1, 2, None, labeler="u"), Judgment("cannot_judge", labeler="v")
    ]  # fmt: skip


def test_a_prompt_of_several_turns():
    text = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n"
    (task,) = read("helpsteer2_preference", {**HELPSTEER2P, "prompt": text})
    assert list(task.prompt) == [HI, says("Hello"), {"role": "user", "content": "Why?"}]
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    (task,) = read("hh", {"chosen": f"{dialogue} So.", "rejected": f"{dialogue} a: b"})
    assert list(task.prompt) == [HI, says("Hello"), {"role": "user", "content": "Why?"}]
    assert task.responses == ("So.", "a: b")


def test_what_is_not_known_stays_in_the_metadata():
    assert read("shp", SHP)[0].metadata == {
        "post_id": "p", "score_A": 9, "score_B": 3, "score_ratio": 3.0, "weight": 1.0
    }  # fmt: skip
    (task,) = read("multipref", MULTIPREF)
    assert task.metadata["normal_worker_annotations"] == MULTIPREF["normal_worker_annotations"]
    assert task.models == ("x", "y")


def test_votes_of_shp_weigh_no_more_than_a_judgment():
    weights = [
        parse_judged_group(row_of(read("shp", {**SHP, "score_ratio": ratio})[0]), "x").weight
        for ratio in (1.25, 2.0, 900.0)
    ]
    assert weights == [0.25, 1.0, 1.0]


# format, row, what the error says
BAD = [
    ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: x\n\nAssistant: c",
            "rejected": "\n\nHuman: Hi\n\nAssistant: b\n\nHuman: x\n\nAssistant: d"},
     "part before their last answers"),
    ("hh", {"chosen": "Human: Hi", "rejected": "Human: Ho"}, "turn of the assistant"),
    ("arena", {**ARENA, "winner": "model_c"}, "'winner': expected one of model_a"),
    ("mtbench", {**MTBENCH, "turn": 2, "conversation_a": [HI, says("a"), *SECOND],
                 "conversation_b": [HI, says("b"), *SECOND]}, "part before their last answers"),
    ("arena_kaggle", {**KAGGLE, "winner_tie": 0}, "exactly one of the winners"),
    ("arena_kaggle", {**KAGGLE, "prompt": '["Hi", "More"]'}, "a chat of 2 turns"),
    ("helpsteer3", {**HELPSTEER3, "individual_preference": [{"score": 4}]}, "from -3 to 3"),
    ("helpsteer3", {**HELPSTEER3, "individual_preference": [{"score": 0.5}]}, "a whole number"),
    ("shp", {**SHP, "labels": 2}, "'labels': expected 1"),
    ("ultrafeedback", ultrafeedback(completion("a", "4")), "two completions or more"),
    ("multipref", {**MULTIPREF, "expert_worker_annotations": [{"overall_pref": "C"}]},
     "'overall_pref': expected one of Tie"),
    ("community_alignment", {**COMMUNITY, "first_turn_preferred_response": "response_e"},
     "'first_turn_preferred_response'"),
    ("prism_utterances", {**UTTERANCE, "model_response": "a", "score": 5, "turn": 1},
     "conversations.jsonl"),
    ("prism", {**PRISM, "conversation_history": [
        {"turn": 0, "role": "user", "content": "Hi"},
        {"turn": 0, "role": "model", "content": "a", "score": 101}]}, "'score'"),
    ("oasst", {"message_tree_id": "t", "message_id": "m", "text": "Hi", "role": "prompter"},
     "file of trees"),
    ("argilla", {**NESTED, "responses": {"note": [{"value": "good", "user_id": "u"}]}},
     "no question ranks or rates fields; found: note"),
    ("argilla", {**NESTED, "fields": {"p": "Hi", "r1": "a", "r2": "b"}}, "expected the prompt in"),
    ("label_studio", label_studio({"a": "A", "b": "B"}, {"type": "pairwise", "to_name": "a,b",
                                                         "value": {"selected": "up"}}),
     "'selected': expected one of left"),
    ("label_studio", label_studio({"a": "A"}, {"type": "textarea", "value": {"text": ["x"]}}),
     "one comparison, ranking or rating"),
    ("label_studio", label_studio({"a": "A"}, {"type": "pairwise", "to_name": "a,b",
                                               "value": {"selected": "left"}}), "'data.b'"),
    ("potato", {"instance_id": "i", "label_annotations": {"p": {"selection": "A"}}},
     "add their texts"),
    ("potato", {"prompt": "Hi", "responses": ["a", "b"], "rank_order": "C"}, "letters of A, B"),
    ("potato", {"prompt": "Hi", "responses": ["a", "b"], "rank_order": "A,B,A"}, "each once"),
    ("potato", {"prompt": "Hi", "responses": ["a", "b"],
                "label_annotations": {"p": {"choice": "A"}}}, "'label_annotations': expected"),
    ("potato", {"prompt": "Hi", "responses": ["a", "b"], "label_annotations": "{}"}, "an object"),
    ("prism", {**PRISM, "conversation_history": [
        {"turn": 0, "role": "model", "content": "a", "score": 1},
        {"turn": 0, "role": "model", "content": "b", "score": 2}]}, "one message of the user"),
    ("argilla", {**NESTED, "responses": {"pref": [{"value": ["r2", "r2", "r1"], "user_id": "u"}]}},
     "each response once"),
    ("label_studio", {"id": 7, "prompt": "Hi", "lang": "en", "a": "A", "b": "B", "pw": "left",
                      "annotator": 3, "annotation_id": 1}, "found the texts lang, a, b"),
    ("best_of_4", {"query": [1], "sample0": [2], "sample1": [3], "sample2": [4], "sample3": [5],
                   "best": 2}, "token ids of GPT-2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_a_row_that_cannot_be_read_says_why(name, row, message):
    with pytest.raises(DataError, match=r"^x: ") as caught:
        read(name, row)
    assert message in str(caught.value)
