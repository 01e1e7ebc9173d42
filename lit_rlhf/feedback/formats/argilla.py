"""Argilla 1 and 2: records with fields, and people's answers to questions about them.

The names of fields and questions are the project's own: the prompt is the field called so, a
ranking names the responses, and a rating is of the only other field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_number, wrong_field
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    prompt_field,
    read_labeler,
    read_object,
    read_objects,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

_NO_FIELDS = ("id", "status", "external_id", "metadata", "split", "_server_id")


class _Answer(NamedTuple):
    question: str
    value: object
    labeler: str | None
    status: str


def _detects(row: Record) -> bool:
    is_nested = isinstance(row.get("fields"), Mapping) and "responses" in row
    return is_nested or any(
        key.endswith(".responses") or _is_first_version(value) for key, value in row.items()
    )


def _is_first_version(value: object) -> bool:
    items = value if isinstance(value, list) else []
    keys = {"user_id", "value", "status"}
    return bool(items) and all(isinstance(item, Mapping) and keys <= set(item) for item in items)


def _read(row: Record, where: str) -> ReadResult:
    content = read_object(row.get("fields") or row, "fields", where)
    fields = {
        name: value
        for name, value in content.items()
        if isinstance(value, str) and "." not in name and name not in _NO_FIELDS
    }
    answers = [answer for answer in _answers(row, where) if answer.status != "draft"]
    questions = [name for name in dict.fromkeys(answer.question for answer in answers) if name]
    # Who discarded a record as a whole answered none of its questions.
    tasks = {
        name: _task(fields, [said for said in answers if said.question in (name, "")], name, where)
        for name in questions
    }
    judged = [task for task in tasks.values() if task is not None]
    if questions and not judged:
        names = ", ".join(questions)
        raise DataError(f"{where}: no question ranks or rates fields; found: {names}.")
    texts = [said for said in answers if tasks.get(said.question) is None]
    return [_with_comments(task, texts)._replace(metadata=rest(row)) for task in judged]


def _with_comments(task: JudgedTask, answers: Sequence[_Answer]) -> JudgedTask:
    """Return the task with what each labeler wrote to questions that ask for a text."""
    written: dict[str | None, list[str]] = {}
    for said in answers:
        if isinstance(said.value, str) and said.labeler is not None:
            written.setdefault(said.labeler, []).append(f"{said.question}: {said.value}")
    judgments = (
        said._replace(comment="\n".join(written.get(said.labeler, ()))) for said in task.judgments
    )
    return task._replace(judgments=tuple(judgments))


def _answers(row: Record, where: str) -> Iterator[_Answer]:
    """Yield the answers in any of the four forms that Argilla writes."""
    responses = row.get("responses")
    if isinstance(responses, Mapping):  # records.to_list(): without a status
        for question, given in responses.items():
            yield from _listed_answers(question, given, where)
    elif isinstance(responses, list):
        yield from _rest_answers(responses, where)
    for key, value in row.items():
        if key.endswith(".responses") and value is not None:
            statuses = row.get(f"{key}.status") or ["submitted"] * len(_listed(value, key, where))
            users = row.get(f"{key}.users") or [None] * len(_listed(value, key, where))
            columns = (_listed(column, key, where) for column in (value, users, statuses))
            for content, user, status in zip(*columns, strict=True):
                name = key.removesuffix(".responses")
                yield _Answer(name, content, read_labeler(user), str(status))
        elif key != "responses" and _is_first_version(value):
            yield from _listed_answers(key, value, where)


def _rest_answers(responses: object, where: str) -> Iterator[_Answer]:
    """Yield the answers as the REST interface has them: one object a person."""
    for answer in read_objects(responses, "responses", where):
        values = read_object(answer.get("values") or {}, "responses.values", where)
        if not values and answer.get("status") == "discarded":
            yield _Answer("", None, read_labeler(answer.get("user_id")), "discarded")
        for question, value in values.items():
            yield from _listed_answers(question, [{**answer, **_as_object(value)}], where)


def _listed(value: object, key: str, where: str) -> list[object]:
    return read_list(value, key, where, "one entry a person")


def _as_object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {"value": value}


def _listed_answers(question: str, given: object, where: str) -> Iterator[_Answer]:
    for answer in read_objects(given, question, where):
        labeler = read_labeler(answer.get("user_id"))
        status = str(answer.get("status") or "submitted")
        yield _Answer(question, answer.get("value"), labeler, status)


def _task(
    fields: Mapping[str, str], answers: Sequence[_Answer], question: str, where: str
) -> JudgedTask | None:
    """Return the task of one question; None where it asks for something else (a comment)."""
    prompt = prompt_field(fields, where)
    ranks = [_ranks(answer, where) for answer in answers]
    named = {name for given in ranks for name in given}
    responses = [name for name in fields if name != prompt and (name in named or not named)]
    if not named <= set(responses) or (not named and len(responses) != 1):
        return None
    judgments = []
    for answer, places in zip(answers, ranks, strict=True):
        if answer.status == "discarded" or answer.value is None:
            judgment = Judgment("skip")
        elif named:
            judgment = Judgment("judged", ranks=tuple(places.get(name) for name in responses))
        elif isinstance(answer.value, str):
            return None
        else:
            rating = read_number(answer.value, answer.question, where)
            judgment = Judgment("judged", ratings=(rating,))
        judgments.append(judgment._replace(labeler=answer.labeler))
    chat = user_turn(fields[prompt], prompt, where)
    texts = tuple(fields[name] for name in responses)
    return JudgedTask(chat, texts, tuple(judgments), None, {}, question)


def _ranks(answer: _Answer, where: str) -> dict[str, int]:
    """Return the place of each field: as it is given (with ties), or by the order of the list."""
    value = answer.value
    if not isinstance(value, list):
        return {}
    if all(isinstance(item, str) for item in value):
        places = [(item, place) for place, item in enumerate(value, start=1)]
    else:
        places = [
            (
                str(item.get("value")),
                int(read_number(item.get("rank"), answer.question, where, low=1)),
            )
            for item in read_objects(value, answer.question, where)
        ]
    ranks: dict[str, int] = dict(places)
    if len(ranks) < len(places):
        raise wrong_field(where, answer.question, "each response once", value)
    return ranks


def _is_in_declared_order(task: JudgedTask) -> bool:
    declared = tuple(range(1, len(task.responses) + 1))
    return all(judgment.ranks in {None, declared} for judgment in task.judgments)


ARGILLA = RowFormat("argilla", _detects, _read, looks_declared=_is_in_declared_order)
