"""Potato: preferences, scales of which negative ones mean the first, and orders such as B,D=A,C."""

from __future__ import annotations

from collections.abc import Mapping

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    Better,
    compared,
    has,
    read_labeler,
    rest,
    second_better_by,
    user_turn,
)
from lit_rlhf.feedback.formats.row_format import ReadResult, RowFormat
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

_SELECTIONS: dict[object, Better] = {"A": "first", "B": "second", "tie": "neither"}
_LABELS = ("selection", "scale_value", "rank_order")
_TEXTS = ("responses", "texts", "text", "displayed_text")


def _detects(row: Record) -> bool:
    return "label_annotations" in row or _label(row) is not None


def _label(row: Record) -> tuple[str, object] | None:
    """Return the kind of label that a row has, at its top or in one of its schemes."""
    schemes = row.get("label_annotations")
    inside = schemes if isinstance(schemes, Mapping) else row
    places = [row, *(value for value in inside.values() if isinstance(value, Mapping))]
    found = ((kind, place[kind]) for place in places for kind in _LABELS if has(place, kind))
    return next(found, None)


def _read(row: Record, where: str) -> ReadResult:
    field = next((name for name in _TEXTS if isinstance(row.get(name), (list, tuple))), None)
    if field is None or not has(row, "prompt"):
        raise DataError(
            f"{where}: expected 'prompt' and 'responses' (a list of texts) beside the labels. "
            "Potato's output names the items alone: add their texts by 'instance_id'."
        )
    texts = read_list(row[field], field, where, "a list of texts")
    responses = tuple(read_text(text, field, where) for text in texts)
    label = _label(row)
    judgment = Judgment("skip") if label is None else _judgment(*label, len(responses), where)
    judgment = judgment._replace(labeler=read_labeler(row.get("user_id") or row.get("annotator")))
    prompt = user_turn(row["prompt"], "prompt", where)
    return [JudgedTask(prompt, responses, (judgment,), None, rest(row, "prompt", field))]


def _judgment(kind: str, value: object, num_responses: int, where: str) -> Judgment:
    if kind == "rank_order":
        return Judgment(
            "judged", ranks=_places(read_text(value, kind, where), num_responses, where)
        )
    if num_responses != 2:
        raise wrong_field(where, kind, "two responses beside it", num_responses)
    if kind == "scale_value":
        try:
            number = int(str(value))
        except ValueError as error:
            raise wrong_field(where, kind, "a whole number", value) from error
        return second_better_by(number, kind, where)
    if value not in _SELECTIONS:
        raise wrong_field(where, kind, "A, B or tie", value)
    return compared(_SELECTIONS[value])


def _places(order: str, num_responses: int, where: str) -> tuple[int | None, ...]:
    """Return the place of each response in an order of letters: best first, `=` for a tie."""
    places = {
        letter.strip(): place
        for place, tied in enumerate(order.split(","), start=1)
        for letter in tied.split("=")
    }
    letters = [chr(ord("A") + index) for index in range(num_responses)]
    if not set(places) <= set(letters):
        raise wrong_field(where, "rank_order", f"letters of {', '.join(letters)}", order)
    return tuple(places.get(letter) for letter in letters)


POTATO = RowFormat("potato", _detects, _read)
