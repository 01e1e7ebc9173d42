"""SHP: two answers to a post, and which has more votes. `labels` is 1 where the first is better."""

from __future__ import annotations

from lit_rlhf.feedback.fields import Record, read_number, wrong_field
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    compared,
    known_by,
    two_responses,
    user_turn,
)

_ANSWERS = ("human_ref_A", "human_ref_B")


def _read(row: Record, where: str) -> ReadResult:
    label = row.get("labels")
    if label not in {0, 1}:
        raise wrong_field(where, "labels", "1 (A is better) or 0 (B is better)", label)
    prompt = user_turn(row.get("history"), "history", where)
    judgment = compared("first" if label == 1 else "second")
    task = two_responses(row, prompt, _ANSWERS, [judgment], where, "history", "labels")
    return [task._replace(metadata={**task.metadata, "weight": _weight(row, where)})]


def _weight(row: Record, where: str) -> float:
    """Return 1 where the better answer has twice the votes or more, and less towards equal votes.

    Votes are not independent judgments: a thousand of them are not a thousand labelers. SHP's
    authors train on ratios of 2 and more.
    """
    if row.get("score_ratio") is None:
        return 1.0
    return min(read_number(row["score_ratio"], "score_ratio", where, low=1) - 1, 1.0)


# Its authors train on at most five pairs of a post: some posts have hundreds.
SHP = RowFormat("shp", known_by("history", "labels", *_ANSWERS), _read, most_per_prompt=5)
