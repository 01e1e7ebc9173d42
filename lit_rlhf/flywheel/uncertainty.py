"""How sure is a reward model of its scores? Twenty small heads on its frozen features say it.

Each head has its own random start, is trained on all judged pairs, and is held to its start: what
the judgments do not decide keeps the spread of the starts. Cheap on a CPU, as the trunk computes
each response once. Source: ActiveUltraFeedback (arXiv 2603.09692): 20 heads of 2 layers of 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_rlhf.flywheel.selection import Floats, Integers
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class HeadsConfig:
    """How the heads are made and trained.

    Attributes:
        num_heads: how many, 2 or more.
        width: of both hidden layers.
        learning_rate: of Adam. The source has 5e-5 with 100 passes over tens of thousands of
            pairs; a round has hundreds, and in `num_steps` steps 1e-3 fits them.
        num_steps: of training.
        batch_size: pairs in a step.
        hold: weight of the squared distance to the start, over the number of judged pairs: it
            decays as they grow, as a prior does.
        prior_deviation: of the scores at the start, in log-odds.
        beta: bounds are `mean -+ beta * deviation` over the heads.
        seed: of the starts and the batches.
    """

    num_heads: int = 20
    width: int = 128
    learning_rate: float = 1e-3
    num_steps: int = 200
    batch_size: int = 64
    hold: float = 0.1
    prior_deviation: float = 1.0
    beta: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_heads", "width", "num_steps", "batch_size"):
            require(f"heads.{name}", getattr(self, name), least=2 if name == "num_heads" else 1)
        for name in ("learning_rate", "prior_deviation", "beta"):
            require(f"heads.{name}", getattr(self, name), above=0)
        require("heads.hold", self.hold, least=0)


class JudgedPairs(NamedTuple):
    """What the heads learn from.

    Attributes:
        pairs: `[M, 2]` places among the features.
        probability: `[M]` share of the labelers who prefer the first.
        weight: `[M]` how much each counts.
    """

    pairs: Integers
    probability: Floats
    weight: Floats


class Bounds(NamedTuple):
    """Scores in log-odds, `[N]` each: their mean and `beta` deviations below and above."""

    mean: Floats
    lower: Floats
    upper: Floats


def estimate_bounds(
    features: Floats, prompts: Integers, judged: JudgedPairs, config: HeadsConfig
) -> Bounds:
    """Train the heads on judged pairs and ask them about every response.

    Args:
        features: `[N, H]` of all responses, judged and not.
        prompts: `[N]` number of the prompt that each responds to. Scores are taken less their mean
            over the prompt's responses: only differences there mean anything.
        judged: `M` pairs of them, 0 or more.
        config: of the heads.

    Returns:
        For each of the `N`.
    """
    rows = torch.from_numpy(np.ascontiguousarray(_standardised(features), np.float32))
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        start = _starts(rows, config, generator)
    weights = start if not len(judged.pairs) else _train(rows, judged, config, start, generator)
    with torch.no_grad():
        scores = _centred(_scores(weights, rows).double().numpy(), prompts)
    mean, spread = scores.mean(0), config.beta * scores.std(0)
    return Bounds(mean, mean - spread, mean + spread)


def _starts(rows: Tensor, config: HeadsConfig, generator: torch.Generator) -> list[Tensor]:
    """Return the three layers of all heads, scaled so that the scores have the deviation asked."""
    shapes = ((rows.shape[1], config.width), (config.width, config.width), (config.width, 1))
    layers = [
        torch.randn(config.num_heads, *shape, generator=generator) * (2 / shape[0]) ** 0.5
        for shape in shapes
    ]
    deviation = _scores(layers, rows).std(1, correction=0).clamp(min=1e-6)  # [heads]
    layers[-1] *= config.prior_deviation / deviation[:, None, None]
    return layers


def _train(
    rows: Tensor,
    judged: JudgedPairs,
    config: HeadsConfig,
    start: list[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    weights = [layer.clone().requires_grad_() for layer in start]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
    pairs = torch.from_numpy(judged.pairs)
    probability = torch.from_numpy(judged.probability).float()
    counts = torch.from_numpy(judged.weight / judged.weight.mean()).float()
    for _ in range(config.num_steps):
        batch = torch.randperm(len(pairs), generator=generator)[: config.batch_size]
        first, second = _scores(weights, rows[pairs[batch].T.reshape(-1)]).chunk(2, dim=1)
        targets = probability[batch].expand_as(first)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            first - second, targets, reduction="none"
        )
        moved = sum(((w - s) ** 2).sum() for w, s in zip(weights, start, strict=True))
        # Summed over the heads: each has a loss of its own.
        loss = (losses * counts[batch]).mean(1).sum() + config.hold / len(pairs) * moved
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights


def _scores(layers: list[Tensor], rows: Tensor) -> Tensor:
    """Score rows `[N, H]` by every head: `[heads, N]`."""
    first, second, last = layers
    hidden = torch.relu(torch.einsum("nh,khw->knw", rows, first))
    hidden = torch.relu(hidden @ second)
    return (hidden @ last).squeeze(-1)


def _centred(scores: Floats, prompts: Integers) -> Floats:
    _, numbers = np.unique(prompts, return_inverse=True)
    means = [np.bincount(numbers, row) / np.bincount(numbers) for row in scores]
    return scores - np.array(means)[:, numbers]


def _standardised(features: Floats) -> Floats:
    deviation = features.std(0)
    deviation[deviation == 0] = 1  # of what is the same in all
    standardised: Floats = (features - features.mean(0)) / deviation
    return standardised
