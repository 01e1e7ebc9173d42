"""Alpaca and Orca: an instruction, what it is about, a system text, earlier turns, an answer."""

from __future__ import annotations

from lit_rlhf.feedback.fields import Record, is_present, read_list, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import OurRow, ReadResult, RowFormat, has, rest, user_turn
from lit_rlhf.prompts import Conversation, Message

_ANSWERS = ("output", "response", "chosen", "rejected")
_USED = ("instruction", "question", "input", "history", "system", "system_prompt")


def _detects(row: Record) -> bool:
    is_answered = is_present(row, "output") or has(row, "chosen", "rejected")
    return is_answered and "instruction" in row and not is_present(row, "prompt")


def _read(row: Record, where: str) -> ReadResult:
    task = read_text(row.get("instruction"), "instruction", where)
    about = read_text(row.get("input") or "", "input", where)
    text = "\n\n".join(part for part in (task, about) if part.strip())
    (*system, turn) = user_turn(text, "instruction", where, row.get("system"))
    prompt = (*system, *_earlier_turns(row.get("history") or [], where), turn)
    return [_with_answer(row, prompt)]


def _earlier_turns(value: object, where: str) -> Conversation:
    turns: list[Message] = []
    for index, exchange in enumerate(read_list(value, "history", where, "a list of exchanges")):
        field = f"history[{index}]"
        texts = read_list(exchange, field, where, "what the user said, and the answer")
        if len(texts) != 2:
            raise wrong_field(where, field, "what the user said, and the answer", exchange)
        for role, text in zip(("user", "assistant"), texts, strict=True):
            turns.append(Message(role=role, content=read_text(text, field, where)))
    return tuple(turns)


def _detects_orca(row: Record) -> bool:
    has_system = "system" in row or "system_prompt" in row
    is_asked = is_present(row, "question") or is_present(row, "input")
    is_answered = is_present(row, "response") or has(row, "chosen", "rejected")
    return has_system and is_asked and is_answered and not has(row, "prompt")


def _read_orca(row: Record, where: str) -> ReadResult:
    asked = "question" if is_present(row, "question") else "input"
    system = row.get("system") or row.get("system_prompt")
    return [_with_answer(row, user_turn(row.get(asked), asked, where, system))]


def _with_answer(row: Record, prompt: Conversation) -> OurRow:
    answers = {field: row[field] for field in _ANSWERS if is_present(row, field)}
    if "chosen" not in answers and "output" in answers:
        answers["response"] = answers.pop("output")
    if isinstance(row.get("kto_tag"), bool):  # LLaMA-Factory's name for TRL's label
        answers["label"] = row["kto_tag"]
    return {"prompt": prompt, **answers, **rest(row, *_USED, *_ANSWERS, "kto_tag")}


ALPACA = RowFormat("alpaca", _detects, _read)
ORCA = RowFormat("orca", _detects_orca, _read_orca)
