"""Potato: preferences, scales of which negative ones mean the first, and orders such as B,D=A,C."""

from __future__ import annotations

from collections.abc import Mapping

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    Better,
    ReadResult,
    RowFormat,
    compared,
    has,
    read_labeler,
    read_object,
    rest,
    second_better_by,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

_SELECTIONS: dict[object, Better] = {"A": "first", "B": "second", "tie": "neither"}
_LABELS = ("selection", "scale_value", "rank_order")
_TEXTS = ("responses", "texts", "text", "displayed_text")


def _detects(row: Record) -> bool:
    return "label_annotations" in row or bool(_labels(row))


def _labels(row: Record) -> dict[str | None, tuple[str, object]]:
    """Return the labels of a row: at its top, or by the schemes that ask for them."""
    schemes = row.get("label_annotations")
    inside = row if schemes is None else schemes
    places: list[tuple[str | None, object]] = [(None, row)]
    places += inside.items() if isinstance(inside, Mapping) else ()
    return {
        name: (kind, place[kind])
        for name, place in places
        if isinstance(place, Mapping)
        for kind in reversed(_LABELS)
        if has(place, kind)
    }


def _read(row: Record, where: str) -> ReadResult:
    field = next((name for name in _TEXTS if isinstance(row.get(name), (list, tuple))), None)
    if field is None or not has(row, "prompt"):
        raise DataError(
            f"{where}: expected 'prompt' and 'responses' (a list of texts) beside the labels. "
            "Potato's output names the items alone: add their texts by 'instance_id'."
        )
    texts = read_list(row[field], field, where, "a list of texts")
    responses = tuple(read_text(text, field, where) for text in texts)
    labels = _labels(row)
    schemes = read_object(row.get("label_annotations") or {}, "label_annotations", where)
    if not labels and any(schemes.values()):
        expected = f"one of {', '.join(_LABELS)} in a scheme"
        raise wrong_field(where, "label_annotations", expected, row["label_annotations"])
    labeler = read_labeler(row.get("user_id") or row.get("annotator"))
    prompt = user_turn(row["prompt"], "prompt", where)
    task = JudgedTask(prompt, responses, (), None, rest(row, "prompt", field))
    if not labels:
        return [task._replace(judgments=(Judgment("skip", labeler=labeler),))]
    found: ReadResult = []
    for scheme, label in labels.items():
        said = _judgment(*label, len(responses), where)._replace(labeler=labeler)
        # Several schemes are several questions about the same responses.
        question = scheme if len(labels) > 1 else None
        found.append(task._replace(judgments=(said,), question=question))
    return found


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
    ordered = [
        (letter.strip(), place)
        for place, tied in enumerate(order.split(","), start=1)
        for letter in tied.split("=")
    ]
    places = dict(ordered)
    letters = [chr(ord("A") + index) for index in range(num_responses)]
    if not set(places) <= set(letters) or len(places) < len(ordered):
        raise wrong_field(where, "rank_order", f"letters of {', '.join(letters)}, each once", order)
    return tuple(places.get(letter) for letter in letters)


POTATO = RowFormat("potato", _detects, _read)
