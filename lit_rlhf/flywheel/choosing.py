"""From candidate responses to the tasks that people are asked, a share of them drawn at random.

The random share is what anything is measured on: pairs that were chosen say nothing about how often
a reward model is right on what the policy writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.aggregation import BetaMean
from lit_rlhf.feedback.early_stop import SHARE
from lit_rlhf.feedback.exchange import training_row
from lit_rlhf.feedback.fields import read_list, wrong_field
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.prompts import split_prompt
from lit_rlhf.feedback.records import complete_prompt, parse_judged_group
from lit_rlhf.flywheel.selection import (
    Acquisition,
    Candidates,
    Floats,
    InfoMax,
    Integers,
    RandomPairs,
    pairs_within,
)
from lit_rlhf.flywheel.uncertainty import HeadsConfig, JudgedPairs, estimate_bounds
from lit_rlhf.prompts import Prompt, Response, prompt_text, response_text
from lit_rlhf.ranges import require

RANDOM, CHOSEN = "random", "chosen"  # shares, in the metadata of the tasks

# Prompts and responses to what the reward model sees in each: `[N, H]`.
FeaturesOf = Callable[[Sequence[Prompt], Sequence[Response]], Floats]


@dataclass(frozen=True)
class Choice:
    """What is asked, and how much of it.

    Attributes:
        acquisition: chooses the pairs beyond the random share, by `class_path` or short name.
        num_tasks: pairs to ask about.
        random_share: of the tasks that are drawn at random, at least 0.05 so that something can be
            measured.
        max_length_gap: leave out pairs (of the chosen share) whose lengths differ by more than this
            share of the longer one; null for any.
        heads: what the bounds of the scores come from.
    """

    acquisition: Acquisition = InfoMax()
    num_tasks: int = 200
    random_share: float = 0.2
    max_length_gap: float | None = None
    heads: HeadsConfig = HeadsConfig()

    def __post_init__(self) -> None:
        require("choice.num_tasks", self.num_tasks, least=1)
        require("choice.random_share", self.random_share, least=0.05, most=1)
        require("choice.max_length_gap", self.max_length_gap, least=0, most=1, is_optional=True)


class Sampled(NamedTuple):
    """A prompt and the responses that a policy gave to it."""

    prompt: Prompt
    responses: tuple[str, ...]


def read_sampled(source: str) -> list[Sampled]:
    """Read prompts with two `responses` or more each.

    Raises:
        DataError: the source cannot be read, or a row is not as expected.
    """
    from lit_rlhf.data.sources import read_records  # noqa: PLC0415 - half a second of imports

    sampled = []
    for row, where in read_records(source):
        items = read_list(row.get("responses"), "responses", where, "two responses or more")
        if len(items) < 2:
            raise wrong_field(where, "responses", "two responses or more", items)
        texts = {f"responses[{place}]": item for place, item in enumerate(items)}
        prompt, responses = split_prompt(row, texts, where)
        prompt = complete_prompt(prompt, row, where)
        sampled.append(Sampled(prompt, tuple(map(response_text, responses))))
    return sampled


def choose_tasks(
    sampled: Sequence[Sampled],
    judged: Sequence[JudgedTask],
    features_of: FeaturesOf | None,
    choice: Choice,
    seed: int,
) -> list[JudgedTask]:
    """Choose the pairs that people are asked about.

    Args:
        sampled: `P` prompts with their responses.
        judged: what was judged so far, for the bounds of the scores; no pair is asked again.
        features_of: of a reward model; None where there is none yet, and then all is random.
        choice: how many, and by which acquisition.
        seed: of all that is drawn.

    Returns:
        Up to `num_tasks` comparisons without judgments, the random share first. Their metadata has
        `share` and `chosen_by`, and for chosen ones the `bounds` of both scores.

    Raises:
        DataError: there is no pair, or the reward model's features are no finite numbers.
    """
    random = np.random.default_rng(seed)
    texts = [text for own in sampled for text in own.responses]
    prompts = np.repeat(np.arange(len(sampled)), [len(own.responses) for own in sampled])
    known = _without_model(texts, prompts)
    # Of what a reward model has seen, the random share would say nothing.
    seen = {
        (prompt_text(task.prompt), *map(response_text, pair))
        for task in judged
        for pair in permutations(task.responses, 2)
    }
    keys = [prompt_text(one.prompt) for one in sampled]
    is_new = [(keys[prompts[a]], texts[a], texts[b]) not in seen for a, b in known.pairs.tolist()]
    known = known._replace(pairs=known.pairs[np.array(is_new, np.bool_)])
    if not len(known.pairs):
        raise DataError(
            "no prompt has two different responses that nobody judged yet: take more prompts, or "
            "sample at a higher temperature"
        )
    # At least one: rounding must not leave nothing to measure on.
    num_random = max(1, round(choice.random_share * choice.num_tasks))
    drawn = known.pairs[RandomPairs()(known, num_random, random)]
    asked = {tuple(pair) for pair in drawn.tolist()}
    near = pairs_within(prompts, texts, max_length_gap=choice.max_length_gap)
    left = {tuple(pair) for pair in known.pairs.tolist()} - asked
    known = known._replace(pairs=near[[tuple(pair) in left for pair in near.tolist()]])
    rule: Acquisition = RandomPairs()
    if features_of is not None:
        rule = choice.acquisition
        known = _with_model(sampled, known, texts, judged, features_of, choice.heads)
    chosen = known.pairs[rule(known, choice.num_tasks - len(drawn), random)]

    def task(pair: Integers, share: str, chosen_by: str) -> JudgedTask:
        a, b = pair.tolist()
        metadata: dict[str, object] = {SHARE: share, "chosen_by": chosen_by}
        if share == CHOSEN and features_of is not None:
            bounds = np.stack([known.lower[pair], known.mean[pair], known.upper[pair]], 1)
            metadata["bounds"] = bounds.round(4).tolist()
        return JudgedTask(sampled[int(prompts[a])].prompt, (texts[a], texts[b]), (), None, metadata)

    by_chance = [task(pair, RANDOM, "RandomPairs") for pair in drawn]
    return by_chance + [task(pair, CHOSEN, type(rule).__name__) for pair in chosen]


def _with_model(
    sampled: Sequence[Sampled],
    candidates: Candidates,
    texts: Sequence[str],
    judged: Sequence[JudgedTask],
    features_of: FeaturesOf,
    heads: HeadsConfig,
) -> Candidates:
    """Fill in features and bounds: those of judged responses are computed along, for the heads."""
    asked: dict[tuple[str, str], tuple[Prompt, Response]] = {}
    places: dict[tuple[str, str], int] = {}
    numbers: dict[str, int] = {}  # of the judged prompts, behind those of the candidates
    pairs, probability, weight = [], [], []
    for number, task in enumerate(judged):
        row = training_row(task)
        if row is None:
            continue
        group = parse_judged_group(row, f"judged task {number}")
        own = []
        for response in group.responses:
            key = (prompt_text(group.prompt), response_text(response))
            numbers.setdefault(key[0], len(sampled) + len(numbers))
            asked.setdefault(key, (group.prompt, response))
            own.append(places.setdefault(key, len(texts) + len(places)))
        for pair in BetaMean().pairs(group):
            pairs.append((own[pair.chosen], own[pair.rejected]))
            probability.append(pair.probability)
            weight.append(pair.weight)
    prompts = [sampled[number].prompt for number in candidates.prompts.tolist()]
    features = features_of(
        [*prompts, *(prompt for prompt, _ in asked.values())],
        [*texts, *(response for _, response in asked.values())],
    )
    known = JudgedPairs(
        np.array(pairs, np.int64).reshape(-1, 2), np.array(probability), np.array(weight)
    )
    all_prompts = [*candidates.prompts.tolist(), *(numbers[prompt] for prompt, _ in asked)]
    bounds = estimate_bounds(features, np.array(all_prompts), known, heads)
    if not np.isfinite(bounds).all():
        raise DataError(
            "the bounds of the scores are no finite numbers: of a broken reward model, or of heads "
            "that diverged (choice.heads.learning_rate)"
        )
    mean, lower, upper = (values[: len(texts)] for values in bounds)
    return candidates._replace(mean=mean, lower=lower, upper=upper, features=features[: len(texts)])


def _without_model(texts: Sequence[str], prompts: Integers) -> Candidates:
    nothing = np.zeros(len(texts))
    lengths = np.array([len(text) for text in texts], np.float64)
    pairs = pairs_within(prompts, texts)
    return Candidates(nothing, nothing, nothing, nothing[:, None], lengths, prompts, pairs)
