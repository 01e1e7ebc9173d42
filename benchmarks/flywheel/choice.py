"""Active choice on its own: what a rule learns from the same number of judgments.

Two cases. On the real model: responses of the SFT policy, judged by simulated raters, features of
a reward model of other raters and texts. Planted: half of all responses are near-duplicates of one
another, a third come in truly tied pairs.

Each rule begins with the same random pairs. Then it chooses batch by batch, one judgment a pair,
and after each batch the heads are measured on random pairs of prompts that no rule may choose from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.flywheel.arms import Proof
from lit_rlhf.demo.loop import model_of
from lit_rlhf.flywheel.labelers import gold_scores, measure_scale
from lit_rlhf.flywheel.models import Draw, features_of, sample_policy
from lit_rlhf.flywheel.selection import (
    DRTS,
    Acquisition,
    Candidates,
    DeltaUCB,
    DOptimal,
    Floats,
    InfoMax,
    Integers,
    RandomPairs,
    pairs_within,
)
from lit_rlhf.flywheel.settings import SamplesConfig
from lit_rlhf.flywheel.uncertainty import HeadsConfig, JudgedPairs, estimate_bounds
from lit_rlhf.modules.precision import autocast

RULES: tuple[Acquisition, ...] = (RandomPairs(), DeltaUCB(), DRTS(), InfoMax(), DOptimal())
BATCH, NUM_BATCHES = 40, 6
NUM_PROMPTS, NUM_RESPONSES, NUM_HELD_OUT = 240, 5, 100
SECONDS_A_JUDGMENT = 10.0
NUM_PLANTED = 12  # seeds of the planted case, which costs no model


class Pool(NamedTuple):
    """Responses with their truth.

    Attributes:
        features: `[N, H]`.
        scores: `[N]` true ones, on the scale in which a judgment is noisy.
        prompts: `[N]`.
        noise: deviation of one judgment of one response.
        held_out: prompts from this number on are for measuring alone.
    """

    features: Floats
    scores: Floats
    prompts: Integers
    noise: float
    held_out: int


def measure(proof: Proof, seeds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each case, rule, seed and batch; `seeds` are those of the real model."""
    runs: list[tuple[str, Callable[[int], Pool], int]]
    runs = [("real", partial(real_pool, proof), seed) for seed in seeds]
    runs += [("planted", planted_pool, seed) for seed in range(1, NUM_PLANTED + 1)]
    rows = []
    for case, make, seed in runs:
        pool = make(seed)
        for rule in RULES:
            name = type(rule).__name__
            found = learn(rule, pool, seed)
            rows += [{"case": case, "rule": name, "seed": seed, **row} for row in found]
    return rows


def learn(rule: Acquisition, pool: Pool, seed: int) -> list[dict[str, float]]:
    """Let a rule choose batch by batch; return judgments, accuracy and seconds after each."""
    random = np.random.default_rng(seed)
    names = [str(place) for place in range(len(pool.prompts))]
    pairs = pairs_within(pool.prompts, names)
    is_held_out = pool.prompts[pairs[:, 0]] >= pool.held_out
    measured, left = pairs[is_held_out], pairs[~is_held_out]
    judged = JudgedPairs(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0))
    rows, spent, start = [], 0.0, time.monotonic()
    bounds = estimate_bounds(pool.features, pool.prompts, judged, HeadsConfig(seed=seed))
    for batch in range(NUM_BATCHES):
        lengths = np.ones(len(names))
        candidates = Candidates(*bounds, pool.features, lengths, pool.prompts, left)
        own = rule if batch else RandomPairs()  # the first is the same for all
        chosen = own(candidates, BATCH, np.random.default_rng([seed, batch]))
        spent += time.monotonic() - start
        judged = _judge(judged, left[chosen], pool, random)
        left = np.delete(left, chosen, axis=0)
        start = time.monotonic()  # the next choice rests on the heads that are measured here
        bounds = estimate_bounds(pool.features, pool.prompts, judged, HeadsConfig(seed=seed))
        seconds = spent + SECONDS_A_JUDGMENT * len(judged.pairs)
        accuracy = accuracy_of(bounds.mean, pool.scores, measured)
        rows.append(
            {"judgments": len(judged.pairs), "accuracy": accuracy, "seconds": round(seconds, 2)}
        )
    return rows


def accuracy_of(scores: Floats, truth: Floats, pairs: Integers) -> float:
    """Return the share of pairs in the true order; pairs that are truly tied are left out."""
    gaps = truth[pairs[:, 0]] - truth[pairs[:, 1]]
    own = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    apart = np.abs(gaps) > 1e-6
    return float(np.mean(np.sign(own[apart]) == np.sign(gaps[apart])))


def planted_pool(seed: int) -> Pool:
    """Return the planted case: of six responses three near-duplicates, two tied, one other."""
    random = np.random.default_rng(seed)
    width = 24
    weights = random.normal(size=width) / 2
    cluster = random.normal(size=width)
    rows = []
    for _ in range(NUM_PROMPTS):
        rows += [cluster + 0.05 * random.normal(size=width) for _ in range(3)]
        tied, sideways = random.normal(size=(2, width))
        sideways -= weights * (sideways @ weights) / (weights @ weights)
        rows += [tied, tied + 2 * sideways, random.normal(size=width)]
    features = np.array(rows)
    prompts = np.repeat(np.arange(NUM_PROMPTS), 6)
    return Pool(features, features @ weights, prompts, 1.0, NUM_PROMPTS - NUM_HELD_OUT)


def real_pool(proof: Proof, seed: int) -> Pool:
    """Return responses of the SFT policy, scored by the raters' gold reward model."""
    settings, precision = proof.settings("rounds", seed), proof.prepare()
    config = SamplesConfig(num_prompts=NUM_PROMPTS, num_responses=NUM_RESPONSES, max_new_tokens=24)
    draw = Draw(seed, precision)
    rows = list(sample_policy(settings.sft, settings.prompts, config, seed, draw))
    texts = [text for row in rows for text in row["responses"]]
    asked = [row["prompt"] for row in rows for _ in row["responses"]]
    with autocast(precision):
        scores = gold_scores(model_of(proof.folder, "reward"))
        scale = measure_scale(str(proof.data / "reward" / "validation.jsonl"), scores)
        truth = scale.slope * scores(asked, texts)
        features = features_of(model_of(proof.folder, "judge"))(asked, texts)
    prompts = np.repeat(np.arange(len(rows)), NUM_RESPONSES)
    return Pool(features, truth, prompts, scale.noise, len(rows) - NUM_HELD_OUT)


def _judge(
    judged: JudgedPairs, pairs: Integers, pool: Pool, random: np.random.Generator
) -> JudgedPairs:
    """Add one noisy judgment of each pair."""
    felt = pool.scores[pairs] + pool.noise * random.standard_normal(pairs.shape)
    first = (felt[:, 0] > felt[:, 1]).astype(np.float64)
    shrunk = 0.25 + 0.5 * first  # as `BetaMean` takes one labeler of one
    return JudgedPairs(
        np.concatenate([judged.pairs, pairs]),
        np.concatenate([judged.probability, shrunk]),
        np.concatenate([judged.weight, np.ones(len(pairs))]),
    )
