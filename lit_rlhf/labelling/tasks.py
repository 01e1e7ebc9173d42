"""What the labeling page's script asks and sends: the next tasks, judgments, own progress."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, func, select

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.agreement import Undefined
from lit_rlhf.feedback.judgments import Judgment, answer_text
from lit_rlhf.feedback.quality import gold_agreement
from lit_rlhf.feedback.queue import num_gold_tasks
from lit_rlhf.feedback.reading import read_tasks
from lit_rlhf.feedback.schema import judgments, labelers
from lit_rlhf.feedback.store import OpenTask
from lit_rlhf.labelling.page import Labeler, check_csrf, page_of
from lit_rlhf.labelling.rendering import plain_text, shown_prompt, shown_text
from lit_rlhf.prompts import as_messages, prompt_text, response_text

router = APIRouter(prefix="/v1")
_MOST_TASKS = 100
_DAY_S = 86_400
_ENOUGH = 0.8  # agreement with gold answers, from which on labelers are told nothing
_SHOWN = 60  # characters of the prompt beside a gold answer


# What a database can have as an id.
_Id = Annotated[int, Field(ge=0, lt=2**63)]


class SentJudgment(BaseModel):
    """A judgment as a browser sends it; see `lit_rlhf.feedback.judgments.Judgment`."""

    model_config = ConfigDict(extra="forbid")

    task_id: _Id
    id: str = Field(min_length=16, max_length=64)
    outcome: Literal["judged", "tie", "both_bad", "skip", "cannot_judge"]
    ranks: tuple[int | None, ...] | None = None
    strength: int | None = None
    ratings: tuple[float | None, ...] | None = None
    edit: str | None = None
    comment: str = Field("", max_length=20_000)
    side_order: tuple[int, ...] | None = None
    shown_at: float | None = None
    submitted_at: float | None = None
    duration_s: float | None = Field(None, ge=0)
    guideline: str | None = Field(None, max_length=64)
    replaces: str | None = Field(None, max_length=64)
    client: dict[str, str | float] | None = None


@router.get("/tasks")
def next_tasks(
    request: Request, user: Labeler, count: Annotated[int, Query(ge=1, le=_MOST_TASKS)] = 8
) -> list[dict[str, Any]]:
    """Lease the user's next tasks: those given out before and not judged, then new ones."""
    page = page_of(request)
    settings = page.settings
    claimed = page.store.claim(
        user.name, count, settings.lease_s, gold_first=settings.qualification
    )
    return [_shown_task(task, user.name) for task in claimed]


@router.get("/tasks/{task_id}/{part}/{place}")
def whole_text(
    request: Request, _: Labeler, task_id: _Id, part: Literal["prompt", "responses"], place: int
) -> dict[str, str]:
    """Return a whole message of the prompt, or response, as plain text.

    `place` counts from 0; responses are in the store's order.
    """
    try:
        content = page_of(request).store.task(task_id).content
    except DataError as error:
        raise HTTPException(404, str(error)) from error
    prompt = [response_text((message,)) for message in as_messages(content.prompt, "user")]
    texts = prompt if part == "prompt" else [response_text(text) for text in content.responses]
    if not 0 <= place < len(texts):
        raise HTTPException(404, f"the task has {len(texts)} texts there")
    return {"text": plain_text(texts[place])}


@router.post("/judgments", dependencies=[Depends(check_csrf)])
def submit(request: Request, user: Labeler, sent: SentJudgment) -> dict[str, bool | str]:
    """Store a judgment once; when this answers, it is on the disk.

    A task whose lease has ended, or that was given to somebody else since, takes it all the same.
    During the qualification the answer may have `told`: what the gold answer is.
    """
    page = page_of(request)
    judgment = Judgment(**sent.model_dump(exclude={"task_id"}), labeler=user.name)
    try:
        receipt = page.store.submit(sent.task_id, judgment)
    except DataError as error:
        raise HTTPException(422, str(error)) from error
    told = None
    if page.settings.qualification:
        with page.store.database.reading() as connection:
            told = _gold_told(
                connection, user.name, sent.task_id, sent.side_order, page.settings.qualification
            )
    return receipt._asdict() | ({"told": told} if told else {})


@router.get("/me")
def progress(request: Request, user: Labeler) -> dict[str, Any]:
    """Return the user's own progress: nothing of anybody else."""
    query = (
        select(
            func.count(judgments.c.task_id.distinct()),
            func.count(judgments.c.task_id.distinct()).filter(
                judgments.c.received_at > time.time() - _DAY_S
            ),
        )
        .join_from(judgments, labelers)
        .where(labelers.c.name == user.name)
    )
    with page_of(request).store.database.reading() as connection:
        total, today = connection.execute(query).one()
        gold = gold_agreement(connection, user.name)
    return {
        "name": user.name,
        "is_paused": user.is_paused,
        "judged": total,
        "today": today,
        "gold": None if isinstance(gold, Undefined) else f"{gold.value:.0%} as the gold answers",
    }


def _shown_task(task: OpenTask, labeler: str) -> dict[str, Any]:
    order = list(range(len(task.responses)))
    # By chance for each labeler and task, and the same when the page is loaded again.
    random.Random(f"{labeler} {task.id}").shuffle(order)
    shown = [shown_text(response) for response in task.responses]
    turns = shown_prompt(task.prompt)
    is_edit = task.kind == "edit"
    return {
        "id": task.id,
        "kind": task.kind,
        "question": None if task.question is None else plain_text(task.question),
        "lease_until": task.lease_until,
        "prompt": [{"role": turn.role, **turn.shown._asdict()} for turn in turns],
        "side_order": order,
        "responses": [
            {**shown[i]._asdict(), "text": task.responses[i] if is_edit else None} for i in order
        ],
    }


def _gold_told(
    connection: Connection, labeler: str, task_id: int, sides: Sequence[int] | None, most: int
) -> str | None:
    """Return what a labeler is told of the gold answer after a judgment; None for nothing.

    New labelers begin with gold tasks, and hear the answers while they seldom agree with them.

    Args:
        connection: of `Database.reading`, which has the judgment.
        labeler: the name.
        task_id: what was judged.
        sides: the responses as the labeler saw them; None: as they are in the store.
        most: gold tasks of the qualification; after these, nothing is told.
    """
    owner = select(labelers.c.id).where(labelers.c.name == labeler)
    labeler_id = connection.execute(owner).scalar_one()
    if num_gold_tasks(connection, labeler_id, most + 1) > most:
        return None
    task = next(iter(read_tasks(connection, [task_id]))).content
    gold = next((said for said in task.judgments if said.is_gold), None)
    share = gold_agreement(connection, labeler)
    if gold is None or isinstance(share, Undefined) or share.value >= _ENOUGH:
        return None
    order = range(len(task.responses)) if sides is None else sides
    seen = gold._replace(
        ranks=gold.ranks and tuple(gold.ranks[place] for place in order),
        ratings=gold.ratings and tuple(gold.ratings[place] for place in order),
    )
    answer = answer_text(seen).replace("_", " ")
    return f"The gold answer to “{plain_text(prompt_text(task.prompt))[:_SHOWN]}”: {answer}"
