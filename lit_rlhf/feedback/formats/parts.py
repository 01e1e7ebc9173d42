"""What a public shape is, and what many share: chats under other names, preferences of two."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import (
    Record,
    is_present,
    read_conversation,
    read_list,
    read_number,
    read_text,
    wrong_field,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.prompts import split_prompt
from lit_rlhf.prompts import Conversation, Message, Response

# A row in our own shape (docs/data.md), with the keys that the format does not know.
OurRow = dict[str, object]
ReadResult = list[JudgedTask | OurRow]
Better = Literal["first", "second", "neither"]
_PROMPT_FIELDS = ("prompt", "instruction", "question", "input", "text")
STANDARD_ROLES = ("system", "developer", "user", "assistant", "tool")
_CALL = "function_call"  # LLaMA-Factory's turn of the assistant that calls tools
_ROLES = {
    **{role: role for role in STANDARD_ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "chatbot", _CALL), "assistant"),
    **dict.fromkeys(("observation", "function_response", "function"), "tool"),
}
_RANKS: dict[Better, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "neither": (1, 1)}


class RowFormat(NamedTuple):
    """A public shape of rows.

    Attributes:
        name: as `data.format` names it.
        detects: says by its keys whether a row has this shape; no row has two.
        read: turns a row and its place into what it holds: none, one or more judged tasks, or
            rows of ours (demonstrations, unpaired labels). It raises a DataError for a bad row.
        joins_rows: rows next to each other that have one prompt and one labeler are one task.
        looks_declared: says of a task that its order may be that of the declaration, not the
            labeler's; where all of a file do, a warning says so.
        most_per_prompt: as many pairs of a prompt are trained on, the first ones.
    """

    name: str
    detects: Callable[[Record], bool]
    read: Callable[[Record, str], ReadResult]
    joins_rows: bool = False
    looks_declared: Callable[[JudgedTask], bool] | None = None
    most_per_prompt: int | None = None


def has(row: Record, *fields: str) -> bool:
    """Say whether a row has all of these fields with a value other than null."""
    return all(is_present(row, field) for field in fields)


def known_by(*fields: str) -> Callable[[Record], bool]:
    """Return the check of a shape that rows have where they have all of these fields."""
    return lambda row: has(row, *fields)


def rest(row: Record, *used: str) -> dict[str, object]:
    """Return the fields that were not used: a task's metadata."""
    return {str(key): value for key, value in row.items() if key not in used and value is not None}


def read_objects(value: object, field: str, where: str) -> list[Mapping[str, object]]:
    """Return a list of objects."""
    items = read_list(value, field, where, "a list of objects")
    for index, item in enumerate(items):
        read_object(item, f"{field}[{index}]", where)
    return [item for item in items if isinstance(item, Mapping)]


def read_object(value: object, field: str, where: str) -> Mapping[str, object]:
    """Return an object: field name -> value."""
    if not isinstance(value, Mapping):
        raise wrong_field(where, field, "an object", value)
    return value


def read_labeler(value: object) -> str | None:
    """Return a labeler's name: a text, a number, or an object with an email address or an id."""
    if isinstance(value, Mapping):
        value = value.get("email") or value.get("id")
    if isinstance(value, (list, tuple)):
        return " ".join(str(part) for part in value)
    return None if value is None else str(value)


def read_duration(value: object, field: str, where: str) -> float | None:
    """Return seconds, or None where nobody measured."""
    return None if value is None else read_number(value, field, where, low=0)


def user_turn(text: object, field: str, where: str, system: object = None) -> Conversation:
    """Return a text as what a user says to the assistant, after the system's text if there is one.

    A public data set's prompt is a message; as a bare text it would run into the response.
    """
    turn = Message(role="user", content=read_text(text, field, where))
    if system is None or system == "":
        return (turn,)
    return Message(role="system", content=read_text(system, "system", where)), turn


def prompt_field(fields: Record, where: str) -> str:
    """Return the name of the field that holds the prompt, where a project chose the names."""
    name = next((name for name in _PROMPT_FIELDS if name in fields), None)
    if name is None:
        expected = ", ".join(_PROMPT_FIELDS)
        raise DataError(f"{where}: expected the prompt in one of the fields {expected}.")
    return name


def read_chat(value: object, field: str, where: str) -> Conversation:
    """Return chat messages that have `from` and `value`, other names of roles, or parts of text."""
    items = read_list(value, field, where, "a list of chat messages")
    turns = [_read_turn(item, f"{field}[{i}]", where) for i, item in enumerate(items)]
    return read_conversation(turns, field, where)


def _read_turn(item: object, field: str, where: str) -> object:
    turn = dict(read_object(item, field, where))
    if "from" in turn:
        turn["role"] = turn.pop("from")
    if "value" in turn:
        turn["content"] = turn.pop("value")
    role = turn.get("role")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise wrong_field(where, f"{field}.role", f"one of {', '.join(_ROLES)}", role)
    if role.lower() == _CALL:
        return {**turn, "role": "assistant", **_read_calls(turn.get("content"), field, where)}
    return {**turn, "role": _ROLES[role.lower()], "content": _join_parts(turn.get("content"))}


def _read_calls(content: object, field: str, where: str) -> dict[str, object]:
    """Return calls that a text of JSON names, one or a list, as chat templates take them."""
    expected = 'calls as JSON: {"name": ..., "arguments": {...}}, or a list of them'
    try:
        found = json.loads(read_text(content, field, where))
    except json.JSONDecodeError as error:
        raise wrong_field(where, field, expected, content) from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise wrong_field(where, field, expected, content)
    return {"content": "", "tool_calls": [{"type": "function", "function": c} for c in calls]}


def _join_parts(content: object) -> object:
    """Return a list of text parts as one text, and any other content as it is."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    texts = [
        part.get("text")
        for part in content
        if isinstance(part, Mapping) and part.get("type") == "text"
    ]
    whole = [text for text in texts if isinstance(text, str)]
    return "".join(whole) if len(whole) == len(content) else content


def last_answers(
    chats: Mapping[str, Conversation], where: str
) -> tuple[Conversation, tuple[Response, ...]]:
    """Return the prompt that chats share, and the assistant's last turn of each.

    Raises:
        DataError: they part before their last turn: answers to different prompts.
    """
    first, *others = chats
    for field in others:
        if chats[field][:-1] != chats[first][:-1]:
            raise DataError(
                f"{where}: '{first}' and '{field}' part before their last answers. Answers to "
                "different chats are no comparison; leave the row out."
            )
    if len(chats[first]) == 1:
        raise wrong_field(where, first, "a turn before the turn of the assistant", chats[first])
    last_turns = {field: chat[-1:] for field, chat in chats.items()}
    prompt, answers = split_prompt({"prompt": chats[first][:-1]}, last_turns, where)
    assert not isinstance(prompt, str)  # it was given as a chat
    return tuple(prompt), answers


def compared(
    better: Better,
    *,
    strength: int | None = None,
    labeler: str | None = None,
    comment: str = "",
    duration_s: float | None = None,
) -> Judgment:
    """Return the judgment that one of two responses is better, or neither."""
    return Judgment(
        "tie" if better == "neither" else "judged",
        ranks=_RANKS[better],
        strength=None if better == "neither" else strength,
        labeler=labeler,
        comment=comment,
        duration_s=duration_s,
    )


def second_better_by(value: object, field: str, where: str, comment: str = "") -> Judgment:
    """Return the judgment on a scale from -3 (first much better) over 0 (tie) to 3 (second)."""
    number = read_number(value, field, where, low=-3, high=3)
    if number != int(number):
        raise wrong_field(where, field, "a whole number from -3 to 3", value)
    better: Better = "neither" if number == 0 else "second" if number > 0 else "first"
    return compared(better, strength=abs(int(number)), comment=comment)


def two_responses(
    row: Record,
    prompt: Conversation,
    fields: tuple[str, str],
    judgments: Sequence[Judgment],
    where: str,
    *used: str,
) -> JudgedTask:
    """Return the task of the responses in two fields; `used` are the others that were read."""
    first, second = (read_text(row.get(field), field, where) for field in fields)
    return JudgedTask(prompt, (first, second), tuple(judgments), None, rest(row, *fields, *used))
