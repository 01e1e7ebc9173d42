"""Who judges the tasks of a round: people, simulated raters, or a language model.

Each is a frozen dataclass, named in YAML by its `class_path`. A round that is started again goes on
with the tasks that still wait; the ids of judgments that a machine makes follow from the task, so
that none is stored twice.
"""

from __future__ import annotations

import abc
import hashlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lit_rlhf.errors import ConfigError, DataError, about_setting
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.reading import StoredTask
from lit_rlhf.feedback.schema import dump_json
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.ranges import require

if TYPE_CHECKING:
    from lit_rlhf.evaluation.pairwise import PairJudge
    from lit_rlhf.flywheel.selection import Floats

_NAMESPACE = uuid.UUID("5b1cbd3e-6f0c-4f0a-9d53-3f6c1f2d8a11")  # of judgments made by machines
_LOWEST, _HIGHEST = -4, 4  # the raters' scale
_ASKED_TOGETHER = 64  # pairs
_MOST_RATED = 256  # texts that the scale is fitted to: the gold model scores them every round

Scores = Callable[[Sequence[Prompt], Sequence[Response]], "Floats"]


class Labeler(abc.ABC):
    """Judges the comparisons of a round."""

    def check(self, num_judgments: int) -> None:  # noqa: B027 - most need nothing
        """Look for what `judge` needs, before a run begins.

        Args:
            num_judgments: as of `judge`.

        Raises:
            ConfigError: it is not there, or cannot be read; the setting is named.
        """

    @abc.abstractmethod
    def judge(
        self, tasks: Sequence[StoredTask], num_judgments: int
    ) -> Iterator[tuple[int, Judgment]]:
        """Yield judgments with the ids of their tasks.

        Args:
            tasks: all comparisons of the round, whether or not they were judged in part before.
            num_judgments: wanted of each task; the caller leaves out those of a task that is
                decided.
        """


@dataclass(frozen=True)
class People(Labeler):
    """People judge: a round opens its tasks in the store and waits until their slots are filled.

    Attributes:
        poll_s: seconds between two looks at the store.
    """

    poll_s: float = 10.0

    def __post_init__(self) -> None:
        require("labeler.poll_s", self.poll_s, above=0)

    def judge(
        self, tasks: Sequence[StoredTask], num_judgments: int
    ) -> Iterator[tuple[int, Judgment]]:
        """Yield nothing: the judgments come into the store from elsewhere."""
        yield from ()


class RatingScale(NamedTuple):
    """How a score becomes one rater's rating: `offset + slope * score + noise * N(0, 1)`."""

    offset: float
    slope: float
    noise: float


@dataclass(frozen=True)
class SimulatedRaters(Labeler):
    """Raters made from human ratings, `rater-1` and so on: a gold score, and the noise of people.

    The gold reward model's scores are put on the raters' scale by least squares on held-out rated
    texts; the noise is the deviation of the raters of one text around their mean. A judgment
    compares two noisy, rounded ratings, and equal ones are a tie. What a rater says of a pair
    depends on the seed, the pair and the rater's name alone.

    Attributes:
        gold: a reward model's folder, fitted to human ratings.
        ratings: held-out judged groups with `ratings`, see docs/data.md.
        noise: of one rating; null measures it on `ratings`.
        seed: of the noise.
    """

    gold: str
    ratings: str
    noise: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require("labeler.noise", self.noise, least=0, is_optional=True)

    def check(self, num_judgments: int) -> None:
        """Look for the gold reward model and the ratings.

        Raises:
            ConfigError: there is no such reward model, or the ratings cannot be read or are few.
        """
        from lit_rlhf.models.handover import check_model  # noqa: PLC0415 - seconds of imports

        with about_setting("labeler.gold"):
            check_model(self.gold, "reward")
        with about_setting("labeler.ratings"):
            read_ratings(self.ratings)

    def judge(
        self, tasks: Sequence[StoredTask], num_judgments: int
    ) -> Iterator[tuple[int, Judgment]]:
        """Yield each rater's judgment of each task, one task after the other."""
        scores = gold_scores(self.gold)
        scale = measure_scale(self.ratings, scores)
        prompts = [task.content.prompt for task in tasks for _ in range(2)]
        texts = [text for task in tasks for text in task.content.responses]
        for task, gold in zip(tasks, scores(prompts, texts).reshape(-1, 2), strict=True):
            for number in range(1, num_judgments + 1):
                yield task.id, self._judgment(task, gold, scale, f"rater-{number}")

    def _judgment(
        self, task: StoredTask, gold: Floats, scale: RatingScale, labeler: str
    ) -> Judgment:
        key = _key(task, labeler)
        random = np.random.default_rng(int.from_bytes(_digest(self.seed, key)[:8], "big"))
        noise = scale.noise if self.noise is None else self.noise
        rated = scale.offset + scale.slope * gold + noise * random.standard_normal(2)
        first, second = np.clip(np.rint(rated), _LOWEST, _HIGHEST)
        name = str(uuid.uuid5(_NAMESPACE, f"{self.seed} {key}"))
        if first == second:
            return Judgment("tie", labeler=labeler, id=name)
        ranks = (1, 2) if first > second else (2, 1)
        # 1 to 8 points apart: slightly, clearly, much.
        strength = min(3, math.ceil(abs(first - second) / 2))
        return Judgment("judged", ranks, strength, labeler=labeler, id=name)


@dataclass(frozen=True)
class AIJudge(Labeler):
    """A language model behind an OpenAI-compatible endpoint, asked in both orders.

    Attributes:
        address: the API's base, such as `http://127.0.0.1:8000/v1`.
        model: its name.
        key_variable: environment variable with the API key.
        num_connections: requests under way together.
    """

    address: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    num_connections: int = 4

    def check(self, num_judgments: int) -> None:
        """Refuse several judgments of one model, and settings that reach no endpoint.

        Raises:
            ConfigError: more than one judgment is wanted: the model would say the same again; or
                the address is none.
        """
        if num_judgments != 1:
            raise ConfigError(f"slots is {num_judgments}; one AI judge judges once: slots: 1")
        with about_setting("labeler"):
            self._judge()

    def _judge(self) -> PairJudge:
        from lit_rlhf.evaluation.endpoint import Endpoint  # noqa: PLC0415 - seconds of imports
        from lit_rlhf.evaluation.pairwise import PairJudge  # noqa: PLC0415

        endpoint = Endpoint(self.address, self.model, self.key_variable)
        return PairJudge(endpoint, num_connections=self.num_connections)

    def judge(
        self, tasks: Sequence[StoredTask], num_judgments: int
    ) -> Iterator[tuple[int, Judgment]]:
        """Yield one judgment of each task; without a readable answer it cannot be judged."""
        from lit_rlhf.evaluation.responses import SourcedPrompt  # noqa: PLC0415 - as above

        judge = self._judge()
        left = [
            task
            for task in tasks
            if all(said.labeler != self.model for said in task.content.judgments)
        ]
        # In parts, so that an endpoint that fails late costs no answers. None is small: where none
        # of its answers can be read, the endpoint is at fault.
        ends = range(_ASKED_TOGETHER, len(left) - _ASKED_TOGETHER + 1, _ASKED_TOGETHER)
        for start, end in pairwise([0, *ends, len(left)] if left else []):
            part = left[start:end]
            prompts = [SourcedPrompt(task.content.prompt, f"task {task.id}") for task in part]
            first, second = zip(*(map(str, task.content.responses) for task in part), strict=True)
            yield from self._said(part, judge.compare(prompts, first, second).outcomes)

    def _said(
        self, tasks: Sequence[StoredTask], outcomes: Floats
    ) -> Iterator[tuple[int, Judgment]]:
        for task, outcome in zip(tasks, outcomes, strict=True):
            name = str(uuid.uuid5(_NAMESPACE, _key(task, self.model)))
            said = Judgment("cannot_judge", labeler=self.model, id=name)
            if outcome == 0.5:
                said = said._replace(outcome="tie")
            elif not math.isnan(outcome):
                said = said._replace(outcome="judged", ranks=(1, 2) if outcome > 0.5 else (2, 1))
            yield task.id, said


def gold_scores(model: str) -> Scores:
    """Return a function that scores responses by a reward model, raw."""
    from lit_rlhf.rewards import LearnedReward  # noqa: PLC0415 - as above

    reward = LearnedReward(model, normalize=False)

    def scores(prompts: Sequence[Prompt], responses: Sequence[Response]) -> Floats:
        found: Floats = reward(prompts, responses).cpu().double().numpy()
        return found

    return scores


class Rated(NamedTuple):
    """Texts that people rated.

    Attributes:
        prompts: of each text.
        texts: as they were rated.
        means: of each text's ratings.
        deviation: of one rating around the mean of its text.
    """

    prompts: list[Prompt]
    texts: list[Response]
    means: list[float]
    deviation: float


def measure_scale(ratings: str, scores: Scores) -> RatingScale:
    """Fit ratings to scores by least squares, and measure how far raters of one text are apart.

    Args:
        ratings: judged groups with `ratings`, see `read_ratings`.
        scores: of the gold reward.

    Raises:
        DataError: the ratings cannot be read or are too few, or what people rated higher has no
            higher score.
    """
    rated = read_ratings(ratings)
    slope, offset = np.polyfit(scores(rated.prompts, rated.texts), rated.means, 1)
    if not slope > 0:
        raise DataError(
            f"{ratings}: the gold model orders these texts against people, not as they do."
        )
    return RatingScale(float(offset), float(slope), rated.deviation)


def read_ratings(ratings: str) -> Rated:
    """Read rated texts.

    Args:
        ratings: judged groups with `ratings`, of which the first 256 texts or so count.

    Raises:
        DataError: the data cannot be read, there are fewer than two rated texts, or no text has
            two ratings.
    """
    from lit_rlhf.data.sources import read_records  # noqa: PLC0415 - as above
    from lit_rlhf.feedback.records import parse_judged_group  # noqa: PLC0415

    rated = Rated([], [], [], 0.0)
    squares, spare = 0.0, 0
    for record in read_records(ratings):
        if len(rated.texts) >= _MOST_RATED:
            break
        group = parse_judged_group(*record)
        for place, text in enumerate(group.responses):
            given = [own[place] for own in group.ratings or ()]
            values = np.array([value for value in given if value is not None])
            if len(values):
                rated.prompts.append(group.prompt)
                rated.texts.append(text)
                rated.means.append(values.mean())
                squares += float(((values - values.mean()) ** 2).sum())
                spare += len(values) - 1
    if len(rated.texts) < 2 or not spare:
        raise DataError(f"{ratings}: needs two texts with two ratings each, to measure raters by.")
    return rated._replace(deviation=math.sqrt(squares / spare))


def _key(task: StoredTask, labeler: str) -> str:
    content = task.content
    return dump_json([content.prompt, list(content.responses), labeler])


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(dump_json(parts).encode()).digest()
