"""HelpSteer 2 and 3, by NVIDIA: ratings, and preferences of which positive ones mean the second."""

from __future__ import annotations

import re

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, is_present, read_number, read_text
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    known_by,
    read_chat,
    read_objects,
    rest,
    second_better_by,
    two_responses,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.prompts import Conversation, Message, content_text

_ANSWERS_2 = ("response_1", "response_2")
_ANSWERS_3 = ("response1", "response2")
# Between the turns of a prompt: `Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?`.
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _read_2(row: Record, where: str) -> ReadResult:
    response = read_text(row.get("response"), "response", where)
    rating = read_number(row.get("helpfulness"), "helpfulness", where)
    judgment = Judgment("judged", ratings=(rating,))
    prompt = _read_prompt(row.get("prompt"), where)
    return [JudgedTask(prompt, (response,), (judgment,), None, rest(row, "prompt", "response"))]


def _read_2_preference(row: Record, where: str) -> ReadResult:
    labelers = row.get("all_preferences_unprocessed") or []
    judgments = [
        second_better_by(item.get("strength"), "strength", where, str(item.get("statement") or ""))
        for item in read_objects(labelers, "all_preferences_unprocessed", where)
    ]
    if not judgments:
        judgments = [second_better_by(row.get("preference_strength"), "preference_strength", where)]
    prompt = _read_prompt(row.get("prompt"), where)
    return [two_responses(row, prompt, _ANSWERS_2, judgments, where, "prompt")]


def _read_prompt(value: object, where: str) -> Conversation:
    first, *parts = _TURN.split(read_text(value, "prompt", where))
    turns = user_turn(first, "prompt", where)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if name == "User" else "assistant"
        turns = (*turns, Message(role=role, content=text))
    if turns[-1]["role"] != "user" and content_text(turns[-1]).strip():
        raise DataError(f"{where}: field 'prompt': expected a chat that ends in the user's turn.")
    # A prompt may end in the mark after which the assistant writes.
    return turns if turns[-1]["role"] == "user" else turns[:-1]


def _read_3(row: Record, where: str) -> ReadResult:
    labelers = row.get("individual_preference") or []
    judgments = [
        second_better_by(item.get("score"), "score", where, str(item.get("reasoning") or ""))
        for item in read_objects(labelers, "individual_preference", where)
        if is_present(item, "score")
    ]
    if not judgments:
        judgments = [second_better_by(row.get("overall_preference"), "overall_preference", where)]
    prompt = read_chat(row.get("context"), "context", where)
    return [two_responses(row, prompt, _ANSWERS_3, judgments, where, "context")]


HELPSTEER2 = RowFormat(
    "helpsteer2",
    known_by("prompt", "response", "helpfulness", "correctness", "coherence"),
    _read_2,
    joins_rows=True,
)
HELPSTEER2_PREFERENCE = RowFormat(
    "helpsteer2_preference",
    known_by("prompt", *_ANSWERS_2, "preference_strength"),
    _read_2_preference,
)
HELPSTEER3 = RowFormat(
    "helpsteer3", known_by("context", *_ANSWERS_3, "overall_preference"), _read_3
)
