"""Judged tasks as rows of ours, TRL's among them, and such rows as judged tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.aggregation import judged_pairs
from lit_rlhf.feedback.fields import Record, is_present, read_list, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import Better, OurRow, compared, rest
from lit_rlhf.feedback.judgments import LISTS, JudgedTask, Judgment, rankings_of
from lit_rlhf.feedback.meant_fields import is_unpaired
from lit_rlhf.feedback.prompts import split_prompt
from lit_rlhf.feedback.records import (
    Comparison,
    JudgedGroup,
    LabelerScores,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
    parse_unpaired,
)

_TEXT, _NUMBER, _WHOLE = ((str,), "text"), ((int, float), "a number"), ((int,), "a whole number")
# Field of a judgment -> the types that it, or each of its values, may have, and their name.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("outcome", "edit", "labeler", "comment", "id", "guideline", "replaces"), _TEXT
    ),
    **dict.fromkeys(("ratings", "duration_s", "shown_at", "submitted_at"), _NUMBER),
    **dict.fromkeys(("ranks", "side_order", "strength"), _WHOLE),
    "is_gold": ((bool,), "true or false"),
}
_JUDGED = ("prompt", "chosen", "rejected", "responses", "rankings", "ratings", "labelers")
# What a task has in its metadata, and training reads beside the prompt.
_BESIDE = ("weight", "tools")


def training_row(task: JudgedTask) -> OurRow | None:
    """Return the judged group that the data modules read, with the names of its labelers.

    Returns:
        None where no judgment compares two responses.
    """
    _, lists = _lists_of(task)
    if len(task.responses) < 2 or not lists:
        return None
    row = {key: value for key, value in row_of(task).items() if key != "metadata"}
    return row | {"labelers": [labeler for labeler, _ in lists]}


def row_of(task: JudgedTask) -> OurRow:
    """Return a judged task as a judged group's row, with all judgments that compare responses.

    Skips say nothing about the responses and are left out.
    """
    field, lists = _lists_of(task)
    beside = {key: task.metadata[key] for key in _BESIDE if task.metadata.get(key) is not None}
    strengths = [judgment.strength for judgment in task.judgments]
    return {
        "prompt": task.prompt,
        "responses": list(task.responses),
        field: [scores for _, scores in lists],
        **beside,
        **({"strengths": strengths} if any(strengths) else {}),
        "metadata": task.metadata,
    }


def _lists_of(task: JudgedTask) -> tuple[str, list[tuple[str | None, Sequence[float | None]]]]:
    """Return "rankings" or "ratings", and each list of these with its labeler.

    A row has one kind of judgments: beside rankings, ratings are last, as places of their order.
    """
    num_responses = len(task.responses)
    found = [
        (said, positions, said.outcome == "judged" and said.ranks is None)
        for said in task.judgments
        if (positions := said.positions(num_responses)) is not None
    ]
    if found and all(is_rating for _, _, is_rating in found):
        return "ratings", [(said.labeler, said.ratings or ()) for said, _, _ in found]
    return "rankings", [
        (said.labeler, ranks)
        for said, positions, is_rating in sorted(found, key=lambda one: one[2])
        for ranks in ([positions] if is_rating else rankings_of(positions))
    ]


def full_row(task: JudgedTask) -> dict[str, object]:
    """Return all that the store knows of a judged task; `task_of_row` reads it."""
    judgments = [
        {
            key: value
            for key, value in judgment._asdict().items()
            if value is not None and value is not False and value != ""
        }
        for judgment in task.judgments
    ]
    row: dict[str, object] = {"prompt": task.prompt, "responses": task.responses}
    row |= {"models": task.models, "question": task.question, "judgments": judgments}
    row["metadata"] = task.metadata
    return {key: value for key, value in row.items() if value}


def trl_rows(task: JudgedTask, where: str) -> Iterator[dict[str, object]]:
    """Yield TRL's comparisons: `prompt`, `chosen`, `rejected`; `probability` as we read it."""
    row = training_row(task)
    if row is None:
        return
    group = parse_judged_group(row, where)
    for pair in judged_pairs(group):
        yield {
            "prompt": group.prompt,
            "chosen": group.responses[pair.chosen],
            "rejected": group.responses[pair.rejected],
            "probability": pair.probability,
        }


def task_of_row(row: Record, where: str) -> JudgedTask:
    """Read what a row of ours says as a judged task: a thumb is a rating of 1 or 0.

    Raises:
        DataError: a field is missing or not as expected, or nothing is judged.
    """
    if is_full(row):
        return _full_task(row, where)
    if any(is_present(row, field) for field in ("chosen", "rejected", "responses")):
        return _compared_task(row, where)
    if is_unpaired(row):
        unpaired = parse_unpaired(row, where)
        thumb = Judgment("judged", ratings=(float(unpaired.is_good),))
        return JudgedTask(unpaired.prompt, (unpaired.response,), (thumb,), None, {})
    if any(is_present(row, field) for field in ("response", "completion", "messages", "text")):
        shown = parse_demonstration(row, where)
        if shown.response and isinstance(shown.response, str):
            edited = Judgment("judged", edit=shown.response)
            return JudgedTask(shown.prompt, (shown.response,), (edited,), None, {})
    else:
        parse_prompt(row, where)  # which says what else is wrong with the row
    raise DataError(f"{where}: holds no judgment of a response that the store could keep.")


def is_full(row: Record) -> bool:
    """Say whether `full_row` wrote a row."""
    return is_present(row, "judgments") and is_present(row, "responses")


def _full_task(row: Record, where: str) -> JudgedTask:
    items = read_list(row.get("responses"), "responses", where, "a list of responses")
    prompt, responses = split_prompt(
        row, {f"responses[{i}]": r for i, r in enumerate(items)}, where
    )
    given = read_list(row.get("judgments"), "judgments", where, "a list of judgments")
    models, metadata, question = row.get("models"), row.get("metadata"), row.get("question")
    return JudgedTask(
        prompt,
        responses,
        tuple(_judgment(item, f"judgments[{i}]", where) for i, item in enumerate(given)),
        tuple(models) if isinstance(models, list) else None,
        _object_or_json(metadata),
        None if question is None else read_text(question, "question", where),
    )


def _judgment(value: object, field: str, where: str) -> Judgment:
    if not isinstance(value, dict) or value.keys() - set(Judgment._fields):
        raise wrong_field(where, field, f"an object of {', '.join(Judgment._fields)}", value)
    # Tables fill what a judgment does not have with null, and have objects as JSON.
    given = {key: item for key, item in value.items() if item is not None}
    for key, (kinds, expected) in _TYPES.items():
        items = given.get(key, [])
        for item in items if isinstance(items, list) and key in LISTS else [items]:
            if key in given and item is not None and type(item) not in kinds:
                raise wrong_field(where, f"{field}.{key}", expected, given[key])
    lists = {
        key: tuple(read_list(given[key], f"{field}.{key}", where, "a list"))
        for key in LISTS
        if key in given
    }
    client = {"client": _object_or_json(given["client"])} if "client" in given else {}
    return Judgment(**{"outcome": "", **given, **lists, **client})


def _object_or_json(value: object) -> dict[str, object]:
    """Return an object, also where a table has it as JSON text; empty where it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, dict) else {}


def _compared_task(row: Record, where: str) -> JudgedTask:
    judgment = parse_judgment(row, where)
    if isinstance(judgment, Comparison):
        labelers = [_compared(judgment.probability, where)]
    elif judgment.ratings is not None:
        labelers = [Judgment("judged", ratings=ratings) for ratings in judgment.ratings]
    else:
        labelers = [_ranked(positions) for positions in judgment.rankings or ()]
    if isinstance(judgment, JudgedGroup) and judgment.labelers is not None:
        names = [name for name in judgment.labelers if name is not None]
        if len(set(names)) < len(names):
            expected = "each labeler once: the later judgment would replace the earlier one"
            raise wrong_field(where, "labelers", expected, judgment.labelers)
        pairs = zip(labelers, judgment.labelers, strict=True)
        labelers = [said._replace(labeler=name) for said, name in pairs]
    metadata = rest(row, *_JUDGED)
    return JudgedTask(judgment.prompt, judgment.responses, tuple(labelers), None, metadata)


def _compared(probability: float, where: str) -> Judgment:
    """Return what one labeler said: a share of several cannot be told apart into judgments."""
    said: dict[float, Better] = {0.0: "second", 0.5: "neither", 1.0: "first"}
    if probability not in said:
        raise DataError(
            f"{where}: field 'probability': {probability:g} is what several judgments come to, and "
            "the store keeps single ones. Import those ('responses' with 'rankings'), train on "
            "this file as it is, or leave 'probability' out where one labeler preferred 'chosen'."
        )
    return compared(said[probability])


def _ranked(positions: LabelerScores) -> Judgment:
    """Return positions, which may be any numbers, as places 1, 2, ...

    One position alone compares nothing: in our rows a null was not judged. It is a skip.
    """
    order = sorted({position for position in positions if position is not None})
    if sum(position is not None for position in positions) < 2:
        return Judgment("skip")
    ranks = tuple(None if p is None else order.index(p) + 1 for p in positions)
    return Judgment("judged", ranks=ranks)
