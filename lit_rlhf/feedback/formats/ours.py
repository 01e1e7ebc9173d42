"""Our own rows, TRL's among them: to typed records, and from judged tasks back to rows."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, is_present, wrong_field
from lit_rlhf.feedback.formats.parts import Better, OurRow, compared, rest
from lit_rlhf.feedback.judgments import JudgedTask, Judgment, rankings_of
from lit_rlhf.feedback.meant_fields import is_unpaired
from lit_rlhf.feedback.records import (
    Comparison,
    Demonstration,
    JudgedGroup,
    LabelerScores,
    PromptRecord,
    Unpaired,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
    parse_unpaired,
)

FeedbackRecord = JudgedTask | Demonstration | Unpaired | PromptRecord
_JUDGED = ("prompt", "chosen", "rejected", "responses", "rankings", "ratings", "labelers")
# What a task has in its metadata, and training reads beside the prompt.
_BESIDE = ("weight", "tools")


def record_of(row: Record, where: str) -> FeedbackRecord:
    """Return what a row of ours holds, by its keys.

    Raises:
        DataError: a field is missing or not as expected.
    """
    if any(is_present(row, field) for field in ("chosen", "rejected", "responses")):
        judgment = parse_judgment(row, where)
        return _task_of(judgment, where)._replace(metadata=rest(row, *_JUDGED))
    if is_unpaired(row):
        return parse_unpaired(row, where)
    if any(is_present(row, field) for field in ("response", "completion", "messages", "text")):
        return parse_demonstration(row, where)
    return parse_prompt(row, where)


def _task_of(judgment: Comparison | JudgedGroup, where: str) -> JudgedTask:
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
    return JudgedTask(judgment.prompt, judgment.responses, tuple(labelers), None, {})


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


def row_of(task: JudgedTask) -> OurRow:
    """Return a judged task as a judged group's row, with all judgments that compare responses.

    Skips say nothing about the responses and are left out.
    """
    rankings: list[Sequence[float | None]] = []
    ratings: list[Sequence[float | None]] = []
    for judgment in task.judgments:
        if judgment.outcome in {"tie", "both_bad"}:
            rankings.append([1] * len(task.responses))
        elif judgment.outcome == "judged" and judgment.ranks is not None:
            rankings += rankings_of(judgment.ranks)
        elif judgment.outcome == "judged" and judgment.ratings is not None:
            ratings.append(judgment.ratings)
    if rankings:  # a row has one kind of judgments; of ratings, the order is kept
        rankings += [[None if r is None else -r for r in scores] for scores in ratings]
    judged: OurRow = {"ratings": ratings} if ratings and not rankings else {"rankings": rankings}
    beside = {key: task.metadata[key] for key in _BESIDE if task.metadata.get(key) is not None}
    strengths = [judgment.strength for judgment in task.judgments]
    return {
        "prompt": task.prompt,
        "responses": list(task.responses),
        **judged,
        **beside,
        **({"strengths": strengths} if any(strengths) else {}),
        "metadata": task.metadata,
    }


def judged_group(task: JudgedTask, where: str) -> JudgedGroup:
    """Return what the data modules make pairs of.

    Raises:
        DataError: fewer than two responses, or no judgment that compares them.
    """
    return parse_judged_group(row_of(task), where)
