"""UltraFeedback: an instruction and completions, each with ratings by aspect.

The mean over the aspects is the rating. `overall_score` is not used: some of its values are ten
times what was meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lit_rlhf.feedback.fields import Record, read_text, wrong_field
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    read_object,
    read_objects,
    rest,
    user_turn,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment


def _detects(row: Record) -> bool:
    completions = row.get("completions")
    return "instruction" in row and isinstance(completions, list) and all(
        isinstance(item, Mapping) and "annotations" in item for item in completions
    )  # fmt: skip


def _read(row: Record, where: str) -> ReadResult:
    completions = read_objects(row.get("completions"), "completions", where)
    responses, ratings, models = [], [], []
    for index, completion in enumerate(completions):
        field = f"completions[{index}]"
        responses.append(read_text(completion.get("response"), f"{field}.response", where))
        ratings.append(_mean_rating(completion.get("annotations"), f"{field}.annotations", where))
        model = completion.get("model")
        models.append(model if isinstance(model, str) else None)
    if len(responses) < 2:
        raise wrong_field(where, "completions", "two completions or more", completions)
    prompt = user_turn(row.get("instruction"), "instruction", where)
    judgment = Judgment("judged", ratings=tuple(ratings))
    metadata = rest(row, "instruction")
    return [JudgedTask(prompt, tuple(responses), (judgment,), tuple(models), metadata)]


def _mean_rating(value: object, field: str, where: str) -> float | None:
    """Return the mean of the ratings that are numbers ("4"), not "N/A"; None if there is none."""
    ratings = []
    for name, annotation in read_object(value, field, where).items():
        rating = read_object(annotation or {}, f"{field}.{name}", where).get("Rating")
        try:
            ratings.append(float(str(rating)))
        except ValueError:
            continue
    ratings = [rating for rating in ratings if math.isfinite(rating)]
    return sum(ratings) / len(ratings) if ratings else None


ULTRAFEEDBACK = RowFormat("ultrafeedback", _detects, _read)
