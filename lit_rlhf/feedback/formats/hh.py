"""HH-RLHF: two dialogues as text, which differ in the assistant's last turn."""

from __future__ import annotations

import re

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, is_present, read_text
from lit_rlhf.feedback.formats.parts import ReadResult, RowFormat, compared, last_answers, rest
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.prompts import Conversation, Message

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _detects(row: Record) -> bool:
    texts = [row.get("chosen"), row.get("rejected")]
    return not is_present(row, "prompt") and all(
        isinstance(text, str) and text.lstrip("\n").startswith(("Human:", "Assistant:"))
        for text in texts
    )


def _read(row: Record, where: str) -> ReadResult:
    chats = {field: _turns(row.get(field), field, where) for field in ("chosen", "rejected")}
    prompt, answers = last_answers(chats, where)
    return [JudgedTask(prompt, answers, (compared("first"),), None, rest(row, *chats))]


def _turns(value: object, field: str, where: str) -> Conversation:
    # The texts between the marks, each after the name that its mark has.
    before, *parts = _TURN.split(read_text(value, field, where).lstrip("\n"))
    if before.strip() or not parts:
        raise DataError(f"{where}: field '{field}': expected turns of 'Human:' and 'Assistant:'.")
    names, texts = parts[::2], parts[1::2]
    return tuple(
        Message(role=_ROLES[name], content=text.strip())
        for name, text in zip(names, texts, strict=True)
    )


HH = RowFormat("hh", _detects, _read)
