"""Our own rows, TRL's among them: to typed records, and from judged tasks back to rows."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.feedback.fields import Record, is_present
from lit_rlhf.feedback.formats.parts import rest
from lit_rlhf.feedback.formats.row_format import OurRow
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.records import (
    Comparison,
    Demonstration,
    JudgedGroup,
    LabelerScores,
    PromptRecord,
    Unpaired,
    is_unpaired,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
    parse_unpaired,
)

FeedbackRecord = JudgedTask | Demonstration | Unpaired | PromptRecord
_JUDGED = ("prompt", "chosen", "rejected", "responses", "rankings", "ratings")


def record_of(row: Record, where: str) -> FeedbackRecord:
    """Return what a row of ours holds, by its keys.

    Raises:
        DataError: a field is missing or not as expected.
    """
    if any(is_present(row, field) for field in ("chosen", "rejected", "responses")):
        judgment = parse_judgment(row, where)
        return _task_of(judgment)._replace(metadata=rest(row, *_JUDGED))
    if is_unpaired(row):
        return parse_unpaired(row, where)
    if any(is_present(row, field) for field in ("response", "completion", "messages", "text")):
        return parse_demonstration(row, where)
    return parse_prompt(row, where)


def _task_of(judgment: Comparison | JudgedGroup) -> JudgedTask:
    if isinstance(judgment, Comparison):
        is_tie, is_turned = judgment.probability == 0.5, judgment.probability < 0.5
        ranks = (1, 1) if is_tie else (2, 1) if is_turned else (1, 2)
        labelers = [Judgment("tie" if is_tie else "judged", ranks=ranks)]
    elif judgment.ratings is not None:
        labelers = [Judgment("judged", ratings=ratings) for ratings in judgment.ratings]
    else:
        labelers = [Judgment("judged", ranks=_places(scores)) for scores in judgment.rankings or ()]
    return JudgedTask(judgment.prompt, judgment.responses, tuple(labelers), None, {})


def _places(positions: LabelerScores) -> tuple[int | None, ...]:
    """Return the places 1, 2, ... of positions, which may be any numbers."""
    order = sorted({position for position in positions if position is not None})
    return tuple(None if p is None else order.index(p) + 1 for p in positions)


def row_of(task: JudgedTask) -> OurRow:
    """Return a judged task as a judged group's row, with all judgments that compare responses.

    Skips say nothing about the responses and are left out. Where only the best response has a
    place, it is compared with each of the others, and they are not compared with each other.
    """
    rankings: list[Sequence[float | None]] = []
    ratings: list[Sequence[float | None]] = []
    for judgment in task.judgments:
        if judgment.outcome in {"tie", "both_bad"}:
            rankings.append([1] * len(task.responses))
        elif judgment.outcome == "judged" and judgment.ranks is not None:
            rankings += _rankings(judgment.ranks)
        elif judgment.outcome == "judged" and judgment.ratings is not None:
            ratings.append(judgment.ratings)
    if rankings:  # a row has one kind of judgments; of ratings, the order is kept
        rankings += [[None if r is None else -r for r in scores] for scores in ratings]
    judged: OurRow = {"ratings": ratings} if ratings and not rankings else {"rankings": rankings}
    weight = task.metadata.get("weight")
    strengths = [judgment.strength for judgment in task.judgments]
    return {
        "prompt": task.prompt,
        "responses": list(task.responses),
        **judged,
        **({} if weight is None else {"weight": weight}),
        **({"strengths": strengths} if any(strengths) else {}),
        "metadata": task.metadata,
    }


def _rankings(ranks: Sequence[int | None]) -> list[Sequence[float | None]]:
    placed = [index for index, rank in enumerate(ranks) if rank is not None]
    if len(placed) != 1 or ranks[placed[0]] != 1:
        return [ranks]
    best = placed[0]
    return [
        [1 if i == best else 2 if i == other else None for i in range(len(ranks))]
        for other in range(len(ranks))
        if other != best
    ]


def judged_group(task: JudgedTask, where: str) -> JudgedGroup:
    """Return what the data modules make pairs of.

    Raises:
        DataError: fewer than two responses, or no judgment that compares them.
    """
    return parse_judged_group(row_of(task), where)
