"""Fields beside a row's texts that change what it says: a system text, ratings, weights, labels.

Those that a record knows are used; the others that look meant are named, never passed over in
silence.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, cast

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, is_present, read_number, read_text, wrong_field
from lit_rlhf.prompts import Message, Prompt, as_messages, content_text

Kind = Literal["demonstration", "judgment", "prompt"]

_SYSTEM = ("system", "system_prompt")
# Of a demonstration the first one is read, the first two behind a prompt.
_RESPONSES = ("response", "completion", "messages", "text")
# Words that make a field the rating of `chosen`: `score_chosen`, `chosen-rating`,
# `chosen_avg_rating`, `reward_chosen`.
_RATES = frozenset({"score", "rating", "reward"})
_RATES_OR_TELLS_HOW = _RATES | {"chosen", "avg", "mean", "overall"}
# Words in the names of fields that say how good an answer is, how much a row counts, or what else
# the model reads: `is_correct`, `human_rating`, `better_response_id`.
_MEANT = frozenset({
    "margin", "label", "kto", "system", "tools", "functions", "weight", "train", "input",
    "instruction", "context", "history", "documents", "probability", "rating", "ratings", "rank",
    "rankings", "score", "scores", "strengths", "reward", "rewards", "preference", "preferred",
    "better", "winner", "good", "bad", "correct", "desirable", "accepted", "quality", "upvoted",
    "thumbs", "tie", "tied", "thinking", "thought", "thoughts", "reasoning", "cot", "kwargs",
})  # fmt: skip
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")  # of `is_correct`, and of `isCorrect`
_USED: dict[Kind, tuple[str, ...]] = {
    "demonstration": (*_SYSTEM, "tools", "functions"),
    "judgment": (
        *_SYSTEM,
        "tools",
        "functions",
        "weight",
        "probability",
        "ratings",
        "rankings",
    ),
}


def unused_fields(row: Record, kind: Kind, used: Collection[str] = ()) -> list[str]:
    """Return the names of fields that look meant, and that records of a kind do not use.

    `used` are further ones that are used. Of a prompt there are none: the reward gets its fields.
    """
    if kind == "prompt":
        return []
    ratings = _rating_fields(row) or () if kind == "judgment" else ()
    overlooked = _overlooked(row) if kind == "demonstration" else []
    return overlooked + [
        str(field)
        for field in row
        if is_present(row, field)
        and not _MEANT.isdisjoint(_words(field))
        and field not in _USED[kind]
        and not (field == "label" and is_unpaired(row))
        and field not in used
        and field not in ratings
    ]


def _overlooked(row: Record) -> list[str]:
    """Return the fields of a demonstration that say something else than what is read of it."""
    used = next((name for name in _RESPONSES if is_present(row, name)), None)
    if used is None:
        return []
    read = {used, "prompt"} if used in _RESPONSES[:2] else {used}
    said = [row[name] for name in read if is_present(row, name)]
    turns = [turn for one in said for turn in as_messages(cast("Prompt", one), "user")]
    whole = "\n".join(map(content_text, turns))
    others = {name: row.get(name) for name in ("prompt", *_RESPONSES) if name not in read}
    return [
        name for name, text in others.items() if isinstance(text, str) and text.strip() not in whole
    ]


def is_unpaired(row: Record) -> bool:
    """Say whether a row is one response with a label: true or false, or 1 or 0."""
    # Tables write 0.0 and 1.0 in columns with gaps.
    is_label = isinstance(row.get("label"), (bool, int, float)) and row["label"] in (0, 1)
    is_answered = is_present(row, "response") or is_present(row, "completion")
    return is_label and ((is_answered and "prompt" in row) or is_present(row, "messages"))


def with_system(prompt: Prompt, row: Record, where: str) -> Prompt:
    """Return a prompt that begins with the row's system text, where it has one beside it.

    Raises:
        DataError: the prompt begins with another system text.
    """
    field = _system_field(row)
    if field is None:
        return prompt
    turns = tuple(as_messages(prompt, "user"))
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
    if (fields := _rating_fields(row)) is not None:
        chosen, rejected = (read_number(row[field], field, where) for field in fields)
        if chosen < rejected:
            raise DataError(
                f"{where}: '{fields[0]}' {chosen:g} is less than '{fields[1]}' {rejected:g}: the "
                "row says both that 'chosen' is better and that it is worse. Correct it, leave it "
                "out, or say how sure you are by 'probability'."
            )
        return 0.5 if chosen == rejected else 1.0
    return 1.0


def _rating_fields(row: Record) -> tuple[str, str] | None:
    """Return the names of the fields that rate `chosen` and `rejected`, if a row has both."""
    for field in map(str, row):
        words = _words(field)
        if "chosen" not in words or not words & _RATES or not words <= _RATES_OR_TELLS_HOW:
            continue
        other = field.replace("chosen", "rejected").replace("Chosen", "Rejected")
        if other != field and is_present(row, field) and is_present(row, other):
            return field, other
    return None


def _words(field: object) -> set[str]:
    return {word.lower() for word in _WORD.findall(str(field))}
