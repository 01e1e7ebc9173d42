"""Chats with `from` and `value`, or with other names of roles: ShareGPT's and LLaMA-Factory's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_rlhf.feedback.fields import Record, is_present, wrong_field
from lit_rlhf.feedback.formats.parts import STANDARD_ROLES, OurRow, ReadResult, RowFormat, read_chat

_CHATS = ("conversations", "conversation", "messages")
_RESPONSES = ("chosen", "rejected")
_READ = (*_CHATS, "prompt", "completion", "response", *_RESPONSES)
_LABELS = ("label", "kto_tag")


def _detects(row: Record) -> bool:
    if any(_is_chat(row.get(field)) for field in ("conversations", "conversation")):
        return True
    return any(_has_other_names(_turns_of(row, field)) for field in _READ)


def _turns_of(row: Record, field: str) -> object:
    """Return a field's value; of `chosen` and `rejected` a single turn is a chat of one."""
    value = row.get(field)
    return [value] if isinstance(value, Mapping) and field in _RESPONSES else value


def _is_chat(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping)


def _has_other_names(turns: object) -> bool:
    if not _is_chat(turns) or not isinstance(turns, Sequence):
        return False
    roles = [turn.get("role") for turn in turns if isinstance(turn, Mapping)]
    return "from" in turns[0] or any(
        isinstance(role, str) and role not in STANDARD_ROLES for role in roles
    )


def _read(row: Record, where: str) -> ReadResult:
    ours: OurRow = {}
    for field in row:
        turns = _turns_of(row, field)
        is_chat = _is_chat(turns) and field in _READ
        ours[field] = read_chat(turns, field, where) if is_chat else turns
    chat = next((field for field in _CHATS if is_present(row, field)), None)
    label = next((field for field in _LABELS if isinstance(row.get(field), bool)), None)
    if chat is None:
        return [ours]
    messages = ours.pop(chat)
    if not isinstance(messages, tuple):
        raise wrong_field(where, chat, "a list of chat messages", messages)
    if any(is_present(row, field) for field in _RESPONSES):
        return [{**ours, "prompt": messages}]
    if label is not None:
        labelled = {"prompt": messages[:-1], "response": messages[-1:], "label": ours.pop(label)}
        return [{**ours, **labelled}]
    return [{**ours, "messages": messages}]


SHAREGPT = RowFormat("sharegpt", _detects, _read)
