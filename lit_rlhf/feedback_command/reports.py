"""`lit-rlhf feedback show` and `agreement`: what a store says, as lines of text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import get_args

from sqlalchemy import Connection

from lit_rlhf.feedback.adding import Kind
from lit_rlhf.feedback.agreement_report import read_agreement
from lit_rlhf.feedback.disagreements import most_split
from lit_rlhf.feedback.judgments import JudgedTask, answer_text
from lit_rlhf.feedback.quality import (
    FIELD_AGREEMENT,
    agreement_by_week,
    judges_and_people,
    labeler_quality,
)
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.markdown import visible
from lit_rlhf.prompts import prompt_text, response_text

_WIDTH = 100  # characters of a text that are shown


def show(options: argparse.Namespace) -> Iterator[str]:
    """Yield how much of everything there is, or the tasks that split the labelers most."""
    with FeedbackStore.open(options.store, create=False) as store:
        if options.disagreements:
            with store.database.reading() as connection:
                yield from _disagreements(connection, options.disagreements)
            return
        counts = store.counts()
    for name, value in counts._asdict().items():
        yield f"{name.replace('_', ' '):<14}{_counted(value)}"


def agreement(options: argparse.Namespace) -> Iterator[str]:
    """Yield how far labelers agree: all together, or by labeler, kind of task or week."""
    by = {"labeler": _by_labeler, "kind": _by_kind, "week": _by_week, None: _together}
    with (
        FeedbackStore.open(options.store, create=False) as store,
        store.database.reading() as connection,
    ):
        lines = list(by[options.by](connection))
    yield from lines or ["nobody has judged anything yet"]


def _counted(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{visible(name)} {number}" for name, number in value.items()) or "none"


def _together(connection: Connection) -> Iterator[str]:
    lines = list(_measures(connection, None))
    yield from lines
    if any(line.startswith("pairs") for line in lines):
        low, high = FIELD_AGREEMENT
        yield f"published projects report {100 * low:.0f} to {100 * high:.0f} % on pairs"
    for judge in judges_and_people(connection):
        yield (
            f"{visible(judge.judge)} and people: {judge.with_people}; people among "
            f"themselves there: {judge.among_people} ({judge.num_tasks} tasks)"
        )


def _by_kind(connection: Connection) -> Iterator[str]:
    for kind in get_args(Kind):
        lines = list(_measures(connection, kind))
        if lines:
            yield kind
            yield from (f"  {line}" for line in lines)


def _measures(connection: Connection, kind: str | None) -> Iterator[str]:
    for judged, measure, value, num_units in read_agreement(connection, kind):
        yield f"{judged:<8}{measure:<32}{value}  ({num_units} with two labelers or more)"


def _by_labeler(connection: Connection) -> Iterator[str]:
    for found in labeler_quality(connection):
        kind = " (model)" if found.is_model else ""
        yield f"{visible(found.labeler)}{kind}, {found.num_tasks} tasks"
        yield f"  with gold answers   {found.gold}"
        yield f"  with the others     {found.others}"
        yield f"  with itself         {found.itself}"


def _by_week(connection: Connection) -> Iterator[str]:
    for week, num_answers, others in agreement_by_week(connection):
        yield f"{week}  {others}  ({num_answers} answers)"


def _disagreements(connection: Connection, count: int) -> Iterator[str]:
    found = most_split(connection, count)
    if not found:
        yield "nobody disagrees about anything yet"
    for task, split, num_labelers in found:
        question = f", {visible(task.content.question)}" if task.content.question else ""
        yield f"task {task.id} ({task.kind}{question}): split {split:.2f}, {num_labelers} labelers"
        yield f"  prompt  {_short(prompt_text(task.content.prompt))}"
        yield from _texts_and_judgments(task.content)


def _texts_and_judgments(task: JudgedTask) -> Iterator[str]:
    for place, response in enumerate(task.responses, start=1):
        yield f"  [{place}]     {_short(response_text(response))}"
    for said in task.judgments:
        name = visible(said.labeler or "(not named)") + (", gold" if said.is_gold else "")
        yield f"  {name}  {answer_text(said)}" + (
            f": {_short(said.comment)}" if said.comment else ""
        )


def _short(text: str) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
