"""A short qualification: new labelers begin with gold tasks, and hear the answers if need be."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from lit_rlhf.feedback.agreement import Undefined
from lit_rlhf.feedback.judgments import answer_text
from lit_rlhf.feedback.quality import gold_agreement
from lit_rlhf.feedback.queue import num_gold_tasks
from lit_rlhf.feedback.reading import read_tasks
from lit_rlhf.feedback.schema import labelers
from lit_rlhf.labelling.rendering import plain_text
from lit_rlhf.prompts import prompt_text

_ENOUGH = 0.8  # agreement with gold answers, from which on labelers are told nothing
_SHOWN = 60  # characters of the prompt


def gold_told(
    connection: Connection, labeler: str, task_id: int, sides: Sequence[int] | None, most: int
) -> str | None:
    """Return what a labeler is told after a judgment; None for nothing.

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
