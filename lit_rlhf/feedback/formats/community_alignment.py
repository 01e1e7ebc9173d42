"""Community Alignment: up to four turns, in each of which a person chose one of four answers."""

from __future__ import annotations

from lit_rlhf.feedback.fields import Record, is_present, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    known_by,
    read_labeler,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.prompts import Conversation, Message

_TURNS = ("first", "second", "third", "fourth")
_SLOTS = ("response_a", "response_b", "response_c", "response_d")
_END = "<|end_of_text|>"


def _read(row: Record, where: str) -> ReadResult:
    chat: Conversation = ()
    tasks = []
    for turn in _TURNS:
        if not is_present(row, f"{turn}_turn_prompt"):
            break
        field = f"{turn}_turn_prompt"
        chat = (*chat, *user_turn(row[field], field, where))
        task, chosen = _read_turn(row, turn, chat, where)
        if len(task.responses) > 1:
            tasks.append(task)
        if chosen is None:
            break
        chat = (*chat, Message(role="assistant", content=chosen))
    return [*tasks]


def _read_turn(
    row: Record, turn: str, chat: Conversation, where: str
) -> tuple[JudgedTask, str | None]:
    """Return a turn's task, and the answer that was chosen."""
    fields = {slot: f"{turn}_turn_{slot}" for slot in _SLOTS}
    answers = {
        slot: read_text(row[field], field, where).removesuffix(_END).rstrip()
        for slot, field in fields.items()
        if is_present(row, field)
    }
    shown = tuple(dict.fromkeys(answers.values()))  # some candidates stand there twice
    # Each annotator has them in another order; in one order they are one task.
    responses = tuple(sorted(shown))
    sides = tuple(responses.index(response) for response in shown)
    field = f"{turn}_turn_preferred_response"
    preferred = row.get(field)
    labeler = read_labeler(row.get("annotator_id"))
    comment = str(row.get(f"{turn}_turn_feedback") or "")
    about = {key: value for key, value in rest(row).items() if "_turn_" not in key}
    if preferred is None:
        judgment = Judgment("skip", labeler=labeler, comment=comment, side_order=sides)
        return JudgedTask(chat, responses, (judgment,), None, {**about, "turn": turn}), None
    if preferred not in answers:
        raise wrong_field(where, field, f"one of {', '.join(answers)}", preferred)
    chosen = answers[str(preferred)]
    # The others were not put in an order among themselves.
    ranks = tuple(1 if response == chosen else None for response in responses)
    judgment = Judgment("judged", ranks, labeler=labeler, comment=comment, side_order=sides)
    return JudgedTask(chat, responses, (judgment,), None, {**about, "turn": turn}), chosen


COMMUNITY_ALIGNMENT = RowFormat(
    "community_alignment",
    known_by("first_turn_prompt", "first_turn_response_a", "first_turn_response_b"),
    _read,
)
