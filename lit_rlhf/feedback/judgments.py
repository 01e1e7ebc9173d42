"""One labeler's judgment of the responses to a prompt, as every tool and file can say it.

The store keeps judgments, the readers of public row shapes return them, and aggregation averages
them. `tie`, `both_bad`, `skip` and `cannot_judge` are four different facts: the first two compare
the responses and say that neither is better, the last two say nothing about the responses.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from lit_rlhf.prompts import Prompt

Outcome = Literal["judged", "tie", "both_bad", "skip", "cannot_judge"]


class Judgment(NamedTuple):
    """What one labeler said about the responses of one task.

    Attributes:
        outcome: "judged" where an order, a rating or an edit follows; else one of the four facts.
        ranks: one position a response, 1 for the best, equal positions for a tie, None where the
            labeler did not rank it. A comparison has two. None where nothing was ranked.
        strength: how much better the best of a comparison is: 1 slightly, 2 clearly, 3 much. None
            where the labeler did not say.
        ratings: one score a response, the larger the better, None where it was not rated.
        edit: the response as the labeler would have it: a demonstration.
        labeler: who judged; None where the file does not say.
        is_gold: a judgment that the tool takes for the truth.
        comment: what the labeler wrote about it.
        duration_s: seconds from showing to submitting; None where nobody measured.
    """

    outcome: Outcome
    ranks: tuple[int | None, ...] | None = None
    strength: int | None = None
    ratings: tuple[float | None, ...] | None = None
    edit: str | None = None
    labeler: str | None = None
    is_gold: bool = False
    comment: str = ""
    duration_s: float | None = None


class JudgedTask(NamedTuple):
    """A prompt, its responses and what labelers said about them: one row of a labeling tool.

    Attributes:
        prompt: text or chat.
        responses: one or more; one is rated or edited, two are compared, more are ranked.
        judgments: one a labeler, in the order of the file.
        models: who wrote each response, None where the file does not say.
        metadata: every key of the row that nothing above holds.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    judgments: tuple[Judgment, ...]
    models: tuple[str | None, ...] | None
    metadata: dict[str, object]
