"""PRISM: chats in which a person rated each model's answer from 1 to 100 and went on with one."""

from __future__ import annotations

from itertools import groupby

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_number, read_text
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    known_by,
    read_labeler,
    read_objects,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.prompts import Conversation, Message


def _read(row: Record, where: str) -> ReadResult:
    history = read_objects(row.get("conversation_history"), "conversation_history", where)
    labeler = read_labeler(row.get("user_id"))
    chat: Conversation = ()
    tasks = []
    for turn, messages in groupby(history, key=lambda message: message.get("turn")):
        asked, *answers = sorted(messages, key=lambda message: message.get("role") != "user")
        if [message.get("role") for message in (asked, *answers[:1])].count("user") != 1:
            raise DataError(
                f"{where}: turn {turn}: expected one message of the user, then answers."
            )
        chat = (*chat, *user_turn(asked.get("content"), "content", where))
        responses = tuple(read_text(answer.get("content"), "content", where) for answer in answers)
        ratings = tuple(_score(answer.get("score"), where) for answer in answers)
        models = tuple(read_labeler(answer.get("model_name")) for answer in answers)
        judgment = Judgment("judged", ratings=ratings, labeler=labeler)
        metadata = {**rest(row, "conversation_history"), "turn": turn}
        if len(responses) > 1:
            tasks.append(JudgedTask(chat, responses, (judgment,), models, metadata))
        followed = next((answer for answer in answers if answer.get("if_chosen")), None)
        if followed is None:
            break
        content = read_text(followed.get("content"), "content", where)
        chat = (*chat, Message(role="assistant", content=content))
    return [*tasks]


def _read_utterance(row: Record, where: str) -> ReadResult:
    if row.get("turn"):
        raise DataError(
            f"{where}: an answer in the middle of a chat, without what stands before it; read "
            "conversations.jsonl instead, or the rows of turn 0."
        )
    judgment = Judgment(
        "judged",
        ratings=(_score(row.get("score"), where),),
        labeler=read_labeler(row.get("user_id")),
    )
    response = read_text(row.get("model_response"), "model_response", where)
    prompt = user_turn(row.get("user_prompt"), "user_prompt", where)
    models = (read_labeler(row.get("model_name")),)
    metadata = rest(row, "user_prompt", "model_response", "model_name")
    return [JudgedTask(prompt, (response,), (judgment,), models, metadata)]


def _score(value: object, where: str) -> float | None:
    return None if value is None else read_number(value, "score", where, low=0, high=100)


PRISM = RowFormat(
    "prism", known_by("conversation_id", "conversation_history", "conversation_type"), _read
)
PRISM_UTTERANCES = RowFormat(
    "prism_utterances",
    known_by("interaction_id", "user_prompt", "model_response"),
    _read_utterance,
    joins_rows=True,
)
