"""One labeler's judgment of the responses to a prompt, as every tool and file can say it.

The store keeps judgments, the readers of public row shapes return them, and aggregation averages
them. `tie`, `both_bad`, `skip` and `cannot_judge` are four different facts: the first two compare
the responses and say that neither is better, the last two say nothing about the responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from lit_rlhf.errors import DataError
from lit_rlhf.prompts import Prompt, Response

Outcome = Literal["judged", "tie", "both_bad", "skip", "cannot_judge"]
Ranks = Sequence[float | None]
LISTS = ("ranks", "ratings", "side_order")  # fields of a judgment with one value a response
SAID_NOTHING = ("skip", "cannot_judge")  # outcomes that say nothing about the responses
# Characters of the texts that the database looks up.
_LONGEST = {"id": 64, "replaces": 64, "labeler": 200}


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
        id: made by whoever sends the judgment, a UUID: sent twice, it is stored once. None in files
            of other tools; the store then makes one that is the same whenever the file is read.
        side_order: indices of the responses as the page showed them, from left to right.
        shown_at: when the labeler saw the task, in seconds since 1970.
        submitted_at: when the labeler decided, likewise.
        guideline: version of the guidelines that the labeler worked by.
        replaces: id of the labeler's earlier judgment of this task that this one corrects.
        client: what else the client says, such as its version and the offset of its clock.
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
    id: str | None = None
    side_order: tuple[int, ...] | None = None
    shown_at: float | None = None
    submitted_at: float | None = None
    guideline: str | None = None
    replaces: str | None = None
    client: dict[str, object] | None = None

    def positions(self, num_responses: int) -> tuple[float | None, ...] | None:
        """Return one number a response, the smaller the better, None where it was not compared.

        Ranks as they are, ratings turned round; a tie and "both bad" put all responses at 1.

        Returns:
            None where the judgment compares nothing.
        """
        if self.outcome in ("tie", "both_bad"):
            return (1,) * num_responses
        if self.outcome != "judged":
            return None
        if self.ranks is None and self.ratings is not None:
            return tuple(None if rating is None else -rating for rating in self.ratings)
        return self.ranks


class JudgedTask(NamedTuple):
    """A prompt, its responses and what labelers said about them: one row of a labeling tool.

    Attributes:
        prompt: text or chat.
        responses: one or more; one is rated or edited, two are compared, more are ranked.
        judgments: one a labeler, in the order of the file.
        models: who wrote each response, None where the file does not say.
        metadata: every key of the row that nothing above holds.
        question: which of several questions about the same responses this is, such as "harmless";
            None for the usual one.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    judgments: tuple[Judgment, ...]
    models: tuple[str | None, ...] | None
    metadata: dict[str, object]
    question: str | None = None


def num_compared(task: JudgedTask) -> int:
    """Return how many labelers compared the responses: neither skips nor gold answers count."""
    said = (one.positions(len(task.responses)) for one in task.judgments if not one.is_gold)
    return sum(positions is not None for positions in said)


def check_judgment(judgment: Judgment, num_responses: int) -> None:
    """Refuse what no labeler can have meant.

    Args:
        judgment: of any labeler.
        num_responses: of the task.

    Raises:
        DataError: the outcome is unknown, ranks, ratings or sides do not fit the responses, or
            something was judged of which nothing is said.
    """
    _check_details(judgment)
    if judgment.outcome not in get_args(Outcome):
        known = ", ".join(get_args(Outcome))
        raise DataError(f"outcome {judgment.outcome!r}: expected one of {known}.")
    for name in ("ranks", "ratings"):
        values = getattr(judgment, name)
        if values is not None and len(values) != num_responses:
            raise DataError(f"{name} {values}: expected {num_responses}, one for each response.")
    if any(rank is not None and rank < 1 for rank in judgment.ranks or ()):
        raise DataError(f"ranks {judgment.ranks}: expected positions from 1, the best.")
    if any(rating is not None and not math.isfinite(rating) for rating in judgment.ratings or ()):
        raise DataError(f"ratings {judgment.ratings}: expected finite numbers.")
    if judgment.strength not in (None, 1, 2, 3):
        raise DataError(f"strength {judgment.strength}: expected 1 slightly, 2 clearly, 3 much.")
    sides = judgment.side_order
    if sides is not None and sorted(sides) != list(range(num_responses)):
        raise DataError(f"side_order {sides}: expected each response's index once, from 0.")
    said = (judgment.ranks, judgment.ratings, judgment.edit)
    if judgment.outcome == "judged" and said == (None, None, None):
        raise DataError("outcome 'judged': expected ranks, ratings or an edit as well.")


def _check_details(judgment: Judgment) -> None:
    """Refuse texts and times that a database does not hold, or not for sure."""
    for name, longest in _LONGEST.items():
        text = getattr(judgment, name)
        if text is not None and (not 0 < len(text) <= longest or not _is_plain(text)):
            raise DataError(f"{name} {text[:80]!r}: expected 1 to {longest} whole characters.")
    times = (judgment.shown_at, judgment.submitted_at, judgment.duration_s)
    if not all(time is None or math.isfinite(time) for time in times):
        raise DataError(f"times {times}: expected finite numbers.")


def _is_plain(text: str) -> bool:
    """Say whether a text has neither control characters nor half of a character."""
    return not any(character < " " or "\ud800" <= character <= "\udfff" for character in text)


def rankings_of(ranks: Ranks) -> list[Ranks]:
    """Return what a ranking compares, as one ranking or several.

    Where only the best response has a place, it is better than each of the others, and they are
    not compared with each other.
    """
    placed = [index for index, rank in enumerate(ranks) if rank is not None]
    if len(placed) != 1 or ranks[placed[0]] != 1:
        return [ranks]
    best = placed[0]
    return [
        tuple(1 if i == best else 2 if i == other else None for i in range(len(ranks)))
        for other in range(len(ranks))
        if other != best
    ]


def answer_text(said: Judgment) -> str:
    """Return a judgment in a few characters: `[2] > [1] = [3]`, or the ratings."""
    if said.outcome != "judged" or (said.ranks is None and said.ratings is None):
        return said.outcome if said.edit is None else "edited"
    if said.ranks is None:
        ratings = said.ratings or ()
        return ", ".join("?" if rating is None else f"{rating:g}" for rating in ratings)
    ranked = sorted((rank, place) for place, rank in enumerate(said.ranks, 1) if rank is not None)
    text = ""
    for index, (rank, place) in enumerate(ranked):
        sign = "" if not index else " = " if ranked[index - 1][0] == rank else " > "
        text += f"{sign}[{place}]"
    return text
