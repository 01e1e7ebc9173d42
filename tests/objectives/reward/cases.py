"""Every loss of a reward model with settings, and the oracle that says what it should be."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lit_rlhf.objectives import reward
from lit_rlhf.objectives.reward import RewardLoss, ScoredResponses
from tests.oracles import reward_losses as oracle

# Places of the responses to four prompts, some tied.
PLACES = ((1, 2), (2, 1, 3), (1, 1, 2, 3), (3, 1, 1, 1, 2))


@dataclass(frozen=True)
class Case:
    """A loss and its oracle: scored responses -> (losses, weights) as lists."""

    loss: RewardLoss
    oracle: Callable[[ScoredResponses], tuple[list[float], list[float]]]

    def make_scored(self, scores):
        return make_steps(scores) if self.loss.reads_steps else make_scored(scores)


def by_pair(scored, centre=0.0, per_prompt=False):
    losses, weights = [], []
    prompts = scored.group[scored.chosen].tolist()
    columns = (scored.chosen, scored.rejected, scored.probability, scored.weight)
    for prompt, *pair in zip(prompts, *(c.tolist() for c in columns), strict=True):
        first, other, probability, weight = pair
        scores = scored.scores.tolist()
        losses.append(oracle.soft_pair(scores[first], scores[other], probability, centre))
        weights.append(weight / prompts.count(prompt) if per_prompt else weight)
    return losses, weights


def by_prompt(scored):
    losses, weights, start = [], [], 0
    for prompt, places in enumerate(PLACES):
        scores = scored.scores[start : start + len(places)].tolist()
        start += len(places)
        losses.append(oracle.plackett_luce(scores, places))
        weights.append(scored.weight[scored.group[scored.chosen] == prompt].mean().item())
    return losses, weights


def by_response(scored, **options):
    pairs = list(zip(scored.chosen.tolist(), scored.rejected.tolist(), strict=True))
    losses, weights = [], []
    columns = zip(scored.scores.tolist(), scored.ratings.tolist(), strict=True)
    for response, (score, rated) in enumerate(columns):
        if not math.isnan(rated):
            own = [scored.weight[i].item() for i, pair in enumerate(pairs) if response in pair]
            losses.append(oracle.rating(score, rated, **options))
            weights.append(sum(own) / len(own))
    return losses, weights


def by_step(scored):
    columns = zip(scored.scores.tolist(), scored.probability.tolist(), strict=True)
    return [oracle.step(*column) for column in columns], scored.weight.tolist()


CASES = [
    Case(reward.BradleyTerryLoss(), by_pair),
    Case(
        reward.BradleyTerryLoss(per_prompt=True, centering=0.1),
        partial(by_pair, centre=0.1, per_prompt=True),
    ),
    Case(reward.PlackettLuceLoss(), by_prompt),
    Case(reward.RatingRegression(2.5, 1.5), partial(by_response, mean=2.5, deviation=1.5)),
    Case(reward.StepLoss(), by_step),
]


def make_scored(scores):
    """Return responses with the places above, as pairs of all of them and as ratings.

    Args:
        scores: `[14]`, of all prompts' responses.
    """
    group, pairs, probability = [], [], []
    for prompt, places in enumerate(PLACES):
        first = len(group)
        group += [prompt] * len(places)
        for a, b in itertools.combinations(range(len(places)), 2):
            better, worse = (a, b) if places[a] <= places[b] else (b, a)
            pairs.append((first + better, first + worse))
            probability.append(0.5 if places[a] == places[b] else 1.0)
    ratings = [float(5 - place) for places in PLACES for place in places]
    ratings[3] = float("nan")
    chosen, rejected = zip(*pairs, strict=True)
    return ScoredResponses(
        scores=scores,
        group=torch.tensor(group),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        probability=torch.tensor(probability, dtype=scores.dtype),
        weight=torch.linspace(0.5, 2.0, len(pairs), dtype=scores.dtype),
        ratings=torch.tensor(ratings, dtype=scores.dtype),
    )


def make_steps(scores):
    """Return steps with soft labels: a score and a label each."""
    response = torch.arange(len(scores)) // 3
    return ScoredResponses(
        scores=scores,
        group=torch.arange(len(scores) // 3 + 1),
        chosen=response,
        rejected=response,
        probability=torch.linspace(0, 1, len(scores), dtype=scores.dtype),
        weight=torch.linspace(0.5, 2.0, len(scores), dtype=scores.dtype),
        ratings=torch.full((len(scores) // 3 + 1,), math.nan),
    )


NUM_RESPONSES = sum(map(len, PLACES))
