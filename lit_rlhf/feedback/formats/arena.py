"""Chatbot Arena and MT-bench: two models' chats and a winner."""

from __future__ import annotations

import json

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_number, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    Better,
    ReadResult,
    RowFormat,
    compared,
    has,
    known_by,
    last_answers,
    read_chat,
    read_labeler,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.prompts import Conversation, Response

_CHATS = ("conversation_a", "conversation_b")
_WINNERS: dict[object, Better] = {"model_a": "first", "model_b": "second", "tie": "neither"}
_BOTH_BAD = ("tie (bothbad)", "both_bad")
_MODELS = ("model_a", "model_b")


def _detects(row: Record) -> bool:
    return has(row, "winner", *_CHATS) and not _detects_mtbench(row)


def _detects_mtbench(row: Record) -> bool:
    return has(row, "winner", "question_id", "turn", *_CHATS) and "anony" not in row


def _read(row: Record, where: str) -> ReadResult:
    chats = {field: read_chat(row.get(field), field, where) for field in _CHATS}
    if row.get("turn") is not None:
        # MT-bench's rows hold both turns, whichever of them was judged.
        turns = int(read_number(row["turn"], "turn", where, low=1))
        chats = {field: _first_turns(chat, turns) for field, chat in chats.items()}
    prompt, answers = last_answers(chats, where)
    winner = row.get("winner")
    labeler = read_labeler(row.get("judge"))
    if winner in _BOTH_BAD:
        judgment = Judgment("both_bad", ranks=(1, 1), labeler=labeler)
    elif winner in _WINNERS:
        judgment = compared(_WINNERS[winner], labeler=labeler)
    else:
        expected = ", ".join([*map(str, _WINNERS), *_BOTH_BAD])
        raise wrong_field(where, "winner", f"one of {expected}", winner)
    return [_task(row, prompt, answers, judgment, ("winner", "judge", *_CHATS))]


def _first_turns(chat: Conversation, turns: int) -> Conversation:
    """Return a chat up to its so many-th answer."""
    answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    return chat[: answers[turns - 1] + 1] if turns <= len(answers) else chat


def _task(
    row: Record,
    prompt: Conversation,
    answers: tuple[Response, ...],
    judgment: Judgment,
    used: tuple[str, ...],
) -> JudgedTask:
    models = tuple(read_labeler(row.get(field)) for field in _MODELS)
    return JudgedTask(prompt, answers, (judgment,), models, rest(row, *used, *_MODELS))


_ONE_HOT: dict[str, Better] = {
    "winner_model_a": "first", "winner_model_b": "second", "winner_tie": "neither"
}  # fmt: skip
_TEXTS = ("prompt", "response_a", "response_b")


def _read_kaggle(row: Record, where: str) -> ReadResult:
    prompt, first, second = (_only_turn(row.get(field), field, where) for field in _TEXTS)
    won = [field for field in _ONE_HOT if read_number(row[field], field, where, low=0, high=1)]
    if len(won) != 1:
        raise wrong_field(where, "winner_model_a", "exactly one of the winners to be 1", won)
    chat = user_turn(prompt, "prompt", where)
    judgment = compared(_ONE_HOT[won[0]])
    return [_task(row, chat, (first, second), judgment, (*_ONE_HOT, *_TEXTS))]


def _only_turn(value: object, field: str, where: str) -> str:
    """Return the one text of a JSON list of turns."""
    try:
        turns = json.loads(read_text(value, field, where))
    except json.JSONDecodeError as error:
        raise wrong_field(where, field, "a JSON list of texts", value) from error
    texts = read_list(turns, field, where, "a JSON list of texts")
    if len(texts) != 1:
        raise DataError(
            f"{where}: field '{field}': a chat of {len(texts)} turns, in which the second answers "
            "follow different first ones. Answers to different chats are no comparison; leave "
            "the row out."
        )
    return read_text(texts[0], field, where)


ARENA = RowFormat("arena", _detects, _read)
MTBENCH = RowFormat("mtbench", _detects_mtbench, _read)
ARENA_KAGGLE = RowFormat("arena_kaggle", known_by(*_ONE_HOT, *_TEXTS), _read_kaggle)
