"""Checks of single fields of a record: each returns the value typed, or says what is wrong where.

A field that is null in a row counts as absent: Hugging Face tables fill the fields that a
row does not have with null.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

from lit_rlhf.errors import DataError
from lit_rlhf.prompts import Conversation, Message

Record = Mapping[str, object]

# Keys of a message that say what of it is learned: axolotl's, ms-swift's and OpenAI's names.
_TRAINS = ("train", "training", "trainable", "loss")
_WEIGHTS = ("weight", "loss_weight")
_ABOUT_LEARNING = re.compile("weight|loss|train|mask")
# A chat that was written as text, by JSON or by Python.
_WRITTEN_CHAT = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


def wrong_field(where: str, field: str, expected: str, found: object) -> DataError:
    """Return the error for a field that is not as expected, naming all that one needs to mend it.

    Args:
        where: the row's place, such as `train.jsonl:3`.
        field: the field, with the place inside it if it is a list, such as `chosen[1].content`.
        expected: what should be there.
        found: what is there; shown short.
    """
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(f"{where}: field '{field}': expected {expected}, found {shown}.")


def is_present(row: Record, field: str) -> bool:
    """Say whether the row has this field with a value other than null."""
    return row.get(field) is not None


def missing_fields(row: Record, where: str, expected: str) -> DataError:
    """Return the error for a row that lacks fields, listing those that it has."""
    present = ", ".join(sorted(str(field) for field in row if is_present(row, field))) or "none"
    return DataError(
        f"{where}: expected {expected}, found the fields: {present}. "
        "Fields of other names are mapped by the option 'columns'."
    )


def read_text(value: object, field: str, where: str) -> str:
    """Return the text, which may be empty."""
    if not isinstance(value, str):
        raise wrong_field(where, field, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which no tokenizer takes
        half = value[max(0, error.start - 20) : error.start + 1]
        raise wrong_field(
            where, field, "whole characters (one is cut in half: write it whole)", half
        ) from error
    return value


def read_plain_text(value: object, field: str, where: str) -> str:
    """Return a text that is no list of chat messages written as text."""
    if isinstance(value, str) and _WRITTEN_CHAT.match(value):
        expected = "a list of chat messages, not such a list written as text"
        raise wrong_field(where, field, expected, value)
    return read_text(value, field, where)


def read_number(
    value: object, field: str, where: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return the finite number in `[low, high]` as a float (true and false are not numbers)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        number = float(cast("float", value)) if is_number else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise wrong_field(where, field, _number_expected(low, high), value)
    return number


def _number_expected(low: float, high: float) -> str:
    if high < math.inf:
        return f"a number from {low:g} to {high:g}"
    return f"a number of {low:g} or more" if low > -math.inf else "a finite number"


def read_list(value: object, field: str, where: str, expected: str) -> list[object]:
    """Return the list (a text is none)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise wrong_field(where, field, expected, value)
    return list(value)


def read_conversation(value: object, field: str, where: str) -> Conversation:
    """Return the chat messages: one or more, each with `role` and `content`."""
    items = read_list(value, field, where, "text or a list of chat messages")
    if not items:
        raise wrong_field(where, field, "one chat message or more", value)
    return tuple(_read_message(item, f"{field}[{i}]", where) for i, item in enumerate(items))


def _read_message(value: object, field: str, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise wrong_field(where, field, "a chat message with 'role' and 'content'", value)
    kept = {str(key): item for key, item in value.items() if item is not None}
    read_text(kept.get("role"), f"{field}.role", where)
    if (call := kept.pop("function_call", None)) is not None:  # OpenAI's older form
        kept["tool_calls"] = [{"type": "function", "function": call}]
    if kept.get("tool_calls"):
        kept["tool_calls"] = _read_calls(kept["tool_calls"], f"{field}.tool_calls", where)
    if not kept.get("tool_calls"):
        _read_content(kept.get("content"), f"{field}.content", where)
    elif kept.get("content"):
        _read_content(kept["content"], f"{field}.content", where)
    _read_training(kept, field, where)
    return cast("Message", kept)


def _read_calls(value: object, field: str, where: str) -> list[object]:
    """Return calls whose arguments are an object, as templates write it: OpenAI has them as JSON.

    Tables fill the arguments that a call does not have with null.
    """
    expected = 'calls: [{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
    calls = []
    for item in read_list(value, field, where, expected):
        is_bare = not isinstance(item, Mapping) or "function" not in item
        call = {"type": "function", "function": item} if is_bare else dict(cast("Record", item))
        called = call["function"]
        if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
            raise wrong_field(where, field, expected, value)
        arguments = called.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise wrong_field(where, f"{field}.arguments", "JSON", arguments) from error
        call["function"] = {**called, "arguments": arguments or {}}
        calls.append(without_nulls(call))
    return calls


def without_nulls(value: object) -> object:
    """Return a JSON value without the keys that are null, as which tables write absent ones."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_content(value: object, field: str, where: str) -> None:
    if not isinstance(value, list):
        read_text(value, field, where)
        return
    for i, part in enumerate(value):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            expected = 'a part {"type": "text", "text": ...}: these models read text alone'
            raise wrong_field(where, f"{field}[{i}]", expected, part)
        read_text(part.get("text"), f"{field}[{i}].text", where)


def _read_training(message: dict[str, object], field: str, where: str) -> None:
    """Check what says whether a turn is learned, and call it `train` and `weight` in place."""
    for key in [key for key in message if _ABOUT_LEARNING.match(key)]:
        place = f"{field}.{key}"
        if key in _WEIGHTS:
            if message[key] not in (0, 1):
                expected = "0 or 1 (a turn is learned or not; the loss has no other weights)"
                raise wrong_field(where, place, expected, message[key])
            message["weight"] = message.pop(key) and message.get("weight", 1)
        elif key not in _TRAINS:
            expected = "'train' (true or false) to say whether a turn is learned; this is not used"
            raise wrong_field(where, place, expected, message[key])
        elif not isinstance(message[key], bool):
            raise wrong_field(where, place, "true or false", message[key])
        else:
            message["train"] = message.pop(key) and message.get("train", True)


def read_text_or_conversation(value: object, field: str, where: str) -> str | Conversation:
    """Return a text as it is, or a list of chat messages; refuse such a list written as text."""
    if isinstance(value, str):
        return read_plain_text(value, field, where)
    return read_conversation(value, field, where)
