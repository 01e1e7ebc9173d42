"""Fields beside a row's texts that change what it says: a system text, ratings, weights, labels.

Those that a record knows are used; the others that look meant are named, never passed over in
silence.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Literal

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, is_present, read_number, read_text, wrong_field
from lit_rlhf.prompts import Conversation, Message, Prompt

Kind = Literal["demonstration", "judgment", "prompt"]

_SYSTEM = ("system", "system_prompt")
# Names for the ratings of `chosen` and `rejected`, in the public data sets that have them.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_MEANT = (
    "margin", "label", *_SYSTEM, "tools", "weight", "train", "input", "history", "probability",
    "rating", "ratings", "rankings", "score", "strengths",
)  # fmt: skip
_USED: dict[Kind, tuple[str, ...]] = {
    "demonstration": (*_SYSTEM, "tools", "label"),
    "judgment": (
        *_SYSTEM,
        "tools",
        "weight",
        "probability",
        "ratings",
        "rankings",
        *chain(*_SCORES),
    ),
}


def unused_fields(row: Record, kind: Kind, used: Collection[str] = ()) -> list[str]:
    """Return the names of fields that look meant, and that records of a kind do not use.

    `used` are further ones that are used. Of a prompt there are none: the reward gets its fields.
    """
    if kind == "prompt":
        return []
    return [
        str(field)
        for field in row
        if is_present(row, field)
        and (field in _MEANT or field.startswith("score_"))
        and field not in _USED[kind]
        and not (field == "label" and kind == "judgment" and _is_labelled(row))
        and field not in used
    ]


def _is_labelled(row: Record) -> bool:
    """Say whether a row has a label on its one response, which KTO learns from."""
    return not any(is_present(row, field) for field in ("chosen", "rejected", "responses"))


def with_system(prompt: Prompt, row: Record, where: str) -> Prompt:
    """Return a prompt that begins with the row's system text, where it has one beside it.

    Raises:
        DataError: the prompt begins with another system text.
    """
    if _system_field(row) is None:
        return prompt
    if isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),)
    return with_system_turn(tuple(prompt), row, where)


def with_system_turn(turns: Conversation, row: Record, where: str) -> Conversation:
    """Return a chat that begins with the row's system text; errors as in `with_system`."""
    field = _system_field(row)
    if field is None:
        return turns
    text = read_text(row[field], field, where)
    if turns[0]["role"] != "system":
        return (Message(role="system", content=text), *turns)
    if turns[0]["content"] != text:
        raise wrong_field(where, field, "the same text as the chat's own system turn", text)
    return turns


def _system_field(row: Record) -> str | None:
    return next((name for name in _SYSTEM if is_present(row, name) and row[name] != ""), None)


def read_probability(row: Record, where: str) -> float:
    """Return how likely `chosen` is better: `probability`, or from ratings, or 1.

    Raises:
        DataError: a number is not as expected, or `rejected` is rated better.
    """
    if is_present(row, "probability"):
        return read_number(row["probability"], "probability", where, low=0, high=1)
    for fields in _SCORES:
        if not all(is_present(row, field) for field in fields):
            continue
        chosen, rejected = (read_number(row[field], field, where) for field in fields)
        if chosen < rejected:
            raise DataError(
                f"{where}: '{fields[0]}' {chosen:g} is less than '{fields[1]}' {rejected:g}: the "
                "row says both that 'chosen' is better and that it is worse. Correct it, leave it "
                "out, or say how sure you are by 'probability'."
            )
        return 0.5 if chosen == rejected else 1.0
    return 1.0
