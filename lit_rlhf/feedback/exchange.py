"""Judged tasks as rows of files, and files as judged tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.aggregation import judged_pairs
from lit_rlhf.feedback.fields import Record, is_present, read_list, read_text, wrong_field
from lit_rlhf.feedback.formats import find_format, judged_group, read_feedback, row_of
from lit_rlhf.feedback.formats.ours import FeedbackRecord
from lit_rlhf.feedback.judgments import JudgedTask, Judgment, check_judgment
from lit_rlhf.feedback.prompts import split_prompt
from lit_rlhf.feedback.records import Demonstration, Unpaired
from lit_rlhf.row_files import is_row_file, read_object, read_rows

BadRows = Literal["refuse", "skip"]
_LISTS = ("ranks", "ratings", "side_order")
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


def training_row(task: JudgedTask) -> dict[str, object] | None:
    """Return the judged group that the data modules read, with the names of its labelers.

    Returns:
        None where no judgment compares two responses.
    """
    ordered = _ratings_last(task)
    labelers = [
        judgment.labeler
        for judgment in ordered.judgments
        for _ in range(_num_lists(task, judgment))
    ]
    if len(task.responses) < 2 or not labelers:
        return None
    row = {key: value for key, value in row_of(ordered).items() if key != "metadata"}
    return row | {"labelers": labelers}


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
    if training_row(task) is None:
        return
    group = judged_group(task, where)
    for pair in judged_pairs(group):
        yield {
            "prompt": group.prompt,
            "chosen": group.responses[pair.chosen],
            "rejected": group.responses[pair.rejected],
            "probability": pair.probability,
        }


def task_of_row(row: Record, where: str) -> JudgedTask:
    """Read a row that `full_row` wrote.

    Raises:
        DataError: a field is missing or not as expected.
    """
    items = read_list(row.get("responses"), "responses", where, "a list of responses")
    prompt, responses = split_prompt(
        row, {f"responses[{i}]": r for i, r in enumerate(items)}, where
    )
    given = read_list(row["judgments"], "judgments", where, "a list of judgments")
    models, metadata, question = row.get("models"), row.get("metadata"), row.get("question")
    return JudgedTask(
        prompt,
        responses,
        tuple(_judgment(item, f"judgments[{i}]", where) for i, item in enumerate(given)),
        tuple(models) if isinstance(models, list) else None,
        _object_or_json(metadata),
        None if question is None else read_text(question, "question", where),
    )


def read_tasks_of_file(path: Path, name: str, bad_rows: BadRows) -> Iterator[JudgedTask | None]:
    """Yield the judged tasks of a file in any known shape; None for each row left out.

    Args:
        path: JSON lines, JSON, CSV or Parquet, see `row_files`, or a folder of such files or as
            `save_to_disk` of Hugging Face's datasets writes it.
        name: of the format; "auto" finds it by the keys of the first row.
        bad_rows: "refuse" raises the error of the first bad row, "skip" leaves such rows out.

    Raises:
        DataError: a row cannot be read, named by file and line, or no format fits.
    """
    broken: list[DataError] = []
    rows = _rows_of_file(path, broken if bad_rows == "skip" else None)
    first = next(rows, None)
    if first is None:  # a file without rows is refused
        raise broken[0]
    rows = chain([first], rows)
    if is_present(first[0], "judgments") and is_present(first[0], "responses"):
        found = _read_full(rows)
    else:
        found = read_feedback(rows, find_format(*first) if name == "auto" else name)
    for content, where in found:
        task = content if isinstance(content, DataError) else _checked(content, where)
        if isinstance(task, JudgedTask):
            yield task
        elif bad_rows == "refuse":
            raise task
        else:
            yield None
    yield from (None for _ in broken)


def _rows_of_file(
    path: Path, broken: list[DataError] | None
) -> Iterator[tuple[dict[str, object], str]]:
    """Yield the rows with their places; what is no row goes to `broken` where it is a list."""
    files = [path] if path.is_file() else _files_of_folder(path)
    for file in files:
        if file.suffix == ".arrow":
            yield from _rows_of_arrow(file)
        else:
            for content, place in read_rows(file):
                try:
                    row = read_object(content, f"{file}{place}")
                except DataError as error:
                    if broken is None:
                        raise
                    broken.append(error)
                else:
                    yield row, f"{file}{place}"


def _files_of_folder(path: Path) -> list[Path]:
    """Return the files of a folder as `save_to_disk` writes it, or of any folder of rows."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder.")
    found = sorted(path.rglob("*"))
    # Beside its Arrow files a data set has JSON files about itself.
    arrow = [file for file in found if re.fullmatch(r"data-\d+-of-\d+\.arrow", file.name)]
    files = arrow or [file for file in found if file.is_file() and is_row_file(file.name)]
    if not files:
        raise DataError(f"{path}: holds no files of rows.")
    return files


def _rows_of_arrow(file: Path) -> Iterator[tuple[dict[str, object], str]]:
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and seldom needed

    number = 0
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                yield row, f"{file}[{number}]"
                number += 1


def _read_full(
    rows: Iterable[tuple[Record, str]],
) -> Iterator[tuple[FeedbackRecord | DataError, str]]:
    for row, where in rows:
        try:
            yield task_of_row(row, where), where
        except DataError as error:
            yield error, where


def _checked(content: FeedbackRecord, where: str) -> JudgedTask | DataError:
    """Return a record as a judged task that the store takes, or what is wrong with it."""
    task = _task_of(content, where)
    if isinstance(task, JudgedTask):
        try:
            for judgment in task.judgments:
                check_judgment(judgment, len(task.responses))
        except DataError as error:
            return DataError(f"{where}: {error}")
    return task


def _task_of(content: FeedbackRecord, where: str) -> JudgedTask | DataError:
    """Return what a record says as a judged task: a thumb is a rating of 1 or 0."""
    if isinstance(content, JudgedTask):
        return content
    if isinstance(content, Unpaired):
        thumb = Judgment("judged", ratings=(float(content.is_good),))
        return JudgedTask(content.prompt, (content.response,), (thumb,), None, {})
    if isinstance(content, Demonstration) and content.prompt is not None and content.response:
        edit = content.response if isinstance(content.response, str) else None
        if edit is not None:
            judgment = Judgment("judged", edit=edit)
            return JudgedTask(content.prompt, (edit,), (judgment,), None, {})
    return DataError(f"{where}: holds no judgment of a response that the store could keep.")


def _judgment(value: object, field: str, where: str) -> Judgment:
    if not isinstance(value, dict) or value.keys() - set(Judgment._fields):
        raise wrong_field(where, field, f"an object of {', '.join(Judgment._fields)}", value)
    # Tables fill what a judgment does not have with null, and have objects as JSON.
    given = {key: item for key, item in value.items() if item is not None}
    for key, (kinds, expected) in _TYPES.items():
        items = given.get(key, [])
        for item in items if isinstance(items, list) and key in _LISTS else [items]:
            if key in given and item is not None and type(item) not in kinds:
                raise wrong_field(where, f"{field}.{key}", expected, given[key])
    lists = {
        key: tuple(read_list(given[key], f"{field}.{key}", where, "a list"))
        for key in _LISTS
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


def _num_lists(task: JudgedTask, judgment: Judgment) -> int:
    row = row_of(task._replace(judgments=(judgment,)))
    lists = row.get("rankings") or row.get("ratings") or []
    return len(lists) if isinstance(lists, list) else 0


def _ratings_last(task: JudgedTask) -> JudgedTask:
    """Return the task with its judgments in the order in which `row_of` lists them."""
    is_rating = [said.outcome == "judged" and said.ranks is None for said in task.judgments]
    ordered = sorted(range(len(is_rating)), key=is_rating.__getitem__)
    return task._replace(judgments=tuple(task.judgments[i] for i in ordered))
