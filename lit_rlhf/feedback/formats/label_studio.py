"""Label Studio: tasks with annotations (JSON), or one annotation a row (JSON_MIN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_number, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    Better,
    ReadResult,
    RowFormat,
    compared,
    has,
    prompt_field,
    read_duration,
    read_labeler,
    read_object,
    read_objects,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

_SIDES: dict[str, Better] = {"left": "first", "right": "second", "none": "neither"}
_TIES = ("tie", "equal", "same")
_ANSWERS = ("pairwise", "choices", "rating", "ranker")
_MIN_KEYS = ("annotator", "annotation_id", "lead_time", "created_at", "updated_at", "id")


def _detects(row: Record) -> bool:
    is_task = isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), Sequence)
    return is_task or has(row, "annotator", "annotation_id")


def _read(row: Record, where: str) -> ReadResult:
    if "annotations" not in row:
        return [_read_min(row, where)]
    data = read_object(row.get("data"), "data", where)
    names: Sequence[str] = ()
    judgments = []
    for annotation in read_objects(row.get("annotations"), "annotations", where):
        judgment = Judgment("skip")
        if not annotation.get("was_cancelled"):
            names, judgment = _read_annotation(annotation, data, names, where)
        duration_s = read_duration(annotation.get("lead_time"), "lead_time", where)
        labeler = read_labeler(annotation.get("completed_by"))
        is_gold = annotation.get("ground_truth") is True
        judgments.append(judgment._replace(labeler=labeler, is_gold=is_gold, duration_s=duration_s))
    if not names:  # skips alone do not say which texts are the responses
        raise DataError(f"{where}: nobody judged this task; leave it out.")
    responses = tuple(_text_of(data, name, where) for name in names)
    prompt = prompt_field(data, where)
    chat = user_turn(data[prompt], prompt, where)
    return [JudgedTask(chat, responses, tuple(judgments), None, rest(row), _question(row, where))]


def _question(row: Record, where: str) -> str | None:
    """Return the name of the control by which labelers answered."""
    for annotation in read_objects(row.get("annotations"), "annotations", where):
        for result in read_objects(annotation.get("result") or [], "result", where):
            if result.get("type") in _ANSWERS:
                return read_labeler(result.get("from_name"))
    return None


def _read_annotation(
    annotation: Record, data: Record, names: Sequence[str], where: str
) -> tuple[Sequence[str], Judgment]:
    """Return the names of the responses, as former annotations have them, and the judgment."""
    results = read_objects(annotation.get("result"), "result", where)
    read = [_read_result(result, data, where) for result in results]
    judged = [found for found in read if found is not None]
    if len(judged) != 1 or (names and names != judged[0][0]):
        raise DataError(
            f"{where}: expected one comparison, ranking or rating in each annotation, of the same "
            f"responses; found {len(judged)}."
        )
    ((found_names, judgment),) = judged
    return found_names, judgment._replace(comment=_comment(results))


def _read_result(
    result: Mapping[str, object], data: Mapping[str, object], where: str
) -> tuple[Sequence[str], Judgment] | None:
    """Return the names of the responses in question, and what was said; None for a comment."""
    value = read_object(result.get("value") or {}, "value", where)
    targets = result.get("to_name") or result.get("toName") or ""
    parts = (
        targets.split(",")
        if isinstance(targets, str)
        else read_list(targets, "to_name", where, "names")
    )
    names = [str(part).strip() for part in parts]
    kind = result.get("type")
    if kind == "pairwise":
        return names, _side(value.get("selected"), where)
    if kind == "choices" and len(names) == 2:
        (choice,) = read_list(value.get("choices"), "choices", where, "one choice")
        return names, _choice(str(choice), names, where)
    if kind == "rating":
        return names, Judgment("judged", ratings=(read_number(value["rating"], "rating", where),))
    if kind == "ranker":
        ranks = _buckets(value.get("ranker"), where)
        items = [str(item["id"]) for item in read_objects(data.get("items"), "data.items", where)]
        return items, Judgment("judged", ranks=tuple(ranks.get(item) for item in items))
    return None


def _side(selected: object, where: str) -> Judgment:
    if selected not in _SIDES:
        raise wrong_field(where, "selected", f"one of {', '.join(_SIDES)}", selected)
    return compared(_SIDES[str(selected)])


def _choice(choice: str, names: Sequence[str], where: str) -> Judgment:
    if choice.lower() in _TIES:
        return compared("neither")
    if choice in names:
        return compared("first" if choice == names[0] else "second")
    return _side(choice.lower(), where)


def _buckets(value: object, where: str) -> dict[str, int]:
    """Return the place of each item: by the order of a list, or of the named lists.

    What lies in the list `_` was not moved by the labeler: it has no place. A single list is the
    ranking itself.
    """
    if isinstance(value, Mapping) and len(value) == 1 and "_" not in value:
        (value,) = value.values()
    if isinstance(value, Mapping):
        buckets = [
            read_list(items, str(name), where, "a list of ids")
            for name, items in value.items()
            if name != "_"
        ]
    else:
        buckets = [[item] for item in read_list(value, "ranker", where, "a list of ids")]
    return {str(item): place for place, items in enumerate(buckets, 1) for item in items}


def _comment(results: Sequence[Mapping[str, object]]) -> str:
    texts = [
        text
        for result in results
        if result.get("type") == "textarea" and isinstance(value := result.get("value"), Mapping)
        for text in (value.get("text") or [])
    ]
    return "\n".join(map(str, texts))


def _text_of(data: Mapping[str, object], name: str, where: str) -> str:
    for item in read_objects(data.get("items") or [], "data.items", where):
        if str(item.get("id")) == name:
            texts = (item.get(key) for key in ("text", "body", "html", "title"))
            return read_text(next((text for text in texts if text), None), name, where)
    return read_text(data.get(name), f"data.{name}", where)


def _read_min(row: Record, where: str) -> JudgedTask:
    """Read a row of JSON_MIN: the two texts beside the prompt are the left and the right one."""
    prompt = prompt_field(row, where)
    sides = {
        key: value["selected"] if isinstance(value, Mapping) and "selected" in value else value
        for key, value in row.items()
        if key not in _MIN_KEYS
    }
    answer = next((key for key, value in sides.items() if value in _SIDES), None)
    names = [
        key
        for key, value in sides.items()
        if isinstance(value, str) and key not in {answer, prompt}
    ]
    if answer is None or len(names) != 2:
        raise DataError(
            f"{where}: expected two texts and 'left', 'right' or 'none', found the texts "
            f"{', '.join(names) or 'none'}. Other rows need the export as JSON, not JSON_MIN."
        )
    judgment = _side(sides[answer], where)._replace(
        labeler=read_labeler(row.get("annotator")),
        duration_s=read_duration(row.get("lead_time"), "lead_time", where),
    )
    responses = tuple(read_text(row[name], name, where) for name in names)
    chat = user_turn(row[prompt], prompt, where)
    metadata = rest(row, answer, prompt, *names)
    return JudgedTask(chat, responses, (judgment,), None, metadata, answer)


LABEL_STUDIO = RowFormat("label_studio", _detects, _read)
