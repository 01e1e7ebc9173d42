"""What a round asks of models itself: responses, features, and how often a reward is right.

Reward models compute in the precision of the caller's autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.evaluation.bootstrap import share
from lit_rlhf.evaluation.responses import SourcedPrompt, prompt_key, read_prompts
from lit_rlhf.evaluation.reward_models import ACCURACY, read_judged, reward_figures, score_judged
from lit_rlhf.evaluation.sampling import SamplingConfig, sample_responses
from lit_rlhf.evaluation.scoring import score_texts
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.flywheel.choosing import FeaturesOf, Sampled
from lit_rlhf.flywheel.selection import Floats, pairs_within
from lit_rlhf.flywheel.settings import SamplesConfig
from lit_rlhf.modules.precision import Precision
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.rewards import LearnedReward


class Draw(NamedTuple):
    """How responses are drawn: the random stream, and the precision of the forwards."""

    seed: int
    precision: Precision


def sample_policy(
    policy: str, prompts: str, config: SamplesConfig, number: int, how: Draw
) -> Iterator[dict[str, Any]]:
    """Yield a round's prompts with responses of a policy.

    Args:
        policy: folder or hub name.
        prompts: all training prompts; each round takes the next `num_prompts`, from the first
            again behind the last.
        config: how many, and how they are drawn.
        number: of the round.
        how: seed and precision of the draw.
    """
    found = read_prompts(prompts)
    first = (number - 1) * config.num_prompts
    places = range(first, first + min(config.num_prompts, len(found)))
    chosen = [found[place % len(found)] for place in places]
    texts = _sample(policy, chosen, config, how)
    for prompt, own in zip(chosen, texts, strict=True):
        yield {"prompt": prompt.prompt, "responses": own}


def features_of(reward: str) -> FeaturesOf:
    """Return a function that says what a reward model sees in responses."""
    source = LearnedReward(reward)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def features(prompts: Sequence[Prompt], responses: Sequence[Response]) -> Floats:
        found: Floats = source.features(prompts, responses, device).cpu().double().numpy()
        return found

    return features


def best_responses(sampled: Sequence[Sampled], reward: str, num_best: int) -> list[dict[str, Any]]:
    """Return the responses that a reward model scores highest, at most one a prompt and none empty.

    Args:
        sampled: prompts with responses; a prompt may come again.
        reward: the model's folder.
        num_best: how many.
    """
    asked = [
        SourcedPrompt(one.prompt, "a sampled prompt") for one in sampled for _ in one.responses
    ]
    texts = [text for one in sampled for text in one.responses]
    scores = score_texts("reward", LearnedReward(reward), asked, texts)
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for (prompt, _), text, score in zip(asked, texts, scores.tolist(), strict=True):
        key = prompt_key(prompt)
        if text.strip() and (key not in best or score > best[key][0]):
            best[key] = score, {"prompt": prompt, "response": text}
    ordered = sorted(best.values(), key=lambda found: -found[0])
    return [row for _, row in ordered[:num_best]]


def accuracy_on(rows: Sequence[dict[str, object]], reward: str) -> dict[str, float | None] | None:
    """Return how often a reward model orders judged pairs as people did, with its interval.

    Args:
        rows: judged groups.
        reward: the model's folder.

    Returns:
        `value`, `low`, `high` and `n`; None where no pair was judged.
    """
    sourced = [SourcedRecord(row, f"random share [{place}]") for place, row in enumerate(rows)]
    if not sourced:
        return None
    judged = read_judged(sourced)
    scores = score_judged(judged, {"reward": LearnedReward(reward, normalize=False)})
    figures, _ = reward_figures(judged, scores)
    (found,) = [figure for figure in figures if figure.section == ACCURACY]
    return found.estimate.as_json()


def accuracy_against_gold(
    policy: str, reward: str, gold: str, prompts: str, config: SamplesConfig, how: Draw
) -> dict[str, float | None] | None:
    """Return how often a reward model orders a policy's responses to one prompt as the gold does.

    Args:
        policy: whose responses.
        reward: the model's folder.
        gold: the simulated truth's.
        prompts: held out.
        config: number of prompts, responses and so on.
        how: seed and precision of the draw.

    Returns:
        `value`, `low`, `high` (over prompts) and `n`, the number of pairs; None where no prompt has
        two different responses, as of a policy that collapsed.
    """
    chosen = read_prompts(prompts, config.num_prompts)
    texts = _sample(policy, chosen, config, how)
    flat = [text for own in texts for text in own]
    numbers = np.repeat(np.arange(len(texts)), config.num_responses)
    repeated = [chosen[number] for number in numbers.tolist()]
    own, truth = (
        score_texts(name, LearnedReward(source, normalize=False), repeated, flat)
        for name, source in (("reward", reward), ("gold", gold))
    )
    a, b = pairs_within(numbers, flat).T
    if not len(a):
        return None
    right = (1 + np.sign(own[a] - own[b]) * np.sign(truth[a] - truth[b])) / 2
    counts = np.bincount(numbers[a], minlength=len(texts))
    held = counts > 0
    shares = np.bincount(numbers[a], right, len(texts))[held] / counts[held]
    return share(shares, counts[held], n=len(a)).as_json()


def raters_right(tasks: Sequence[JudgedTask], gold: str) -> dict[str, float | None] | None:
    """Return how often single judgments are in the gold order; ties say nothing.

    Args:
        tasks: judged comparisons.
        gold: the simulated truth's reward model.

    Returns:
        `value`, `low`, `high` (over tasks) and `n`, the number of judgments; None without any.
    """
    prompts = [SourcedPrompt(task.prompt, "a judged task") for task in tasks for _ in range(2)]
    texts = [text for task in tasks for text in task.responses]
    scores = score_texts("gold", LearnedReward(gold, normalize=False), prompts, texts)
    right, counts = np.zeros(len(tasks)), np.zeros(len(tasks))
    for place, (task, (first, second)) in enumerate(zip(tasks, scores.reshape(-1, 2), strict=True)):
        decided = [one.ranks for one in task.judgments if one.ranks is not None]
        counts[place] = len(decided)
        right[place] = sum((ranks == (1, 2)) == (first > second) for ranks in decided)
    held = counts > 0
    if not held.any():
        return None
    return share(right[held] / counts[held], counts[held], n=int(counts.sum())).as_json()


def _sample(
    policy: str, prompts: Sequence[SourcedPrompt], config: SamplesConfig, how: Draw
) -> list[tuple[str, ...]]:
    settings = SamplingConfig(
        samples=config.num_responses,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=how.seed,
        precision=how.precision,
    )
    return list(sample_responses("policy", policy, prompts, settings).texts)
