"""Candidates with a known truth: many near-duplicates, many true ties, and some that differ."""

import numpy as np

from lit_rlhf.flywheel.selection import Candidates, pairs_within

NUM_FEATURES = 12


def random_candidates(seed=0, num_prompts=6, num_responses=5):
    """Return candidates without any pattern."""
    random = np.random.default_rng(seed)
    num = num_prompts * num_responses
    mean, half = random.normal(size=num), random.uniform(0.1, 2, num)
    prompts = np.repeat(np.arange(num_prompts), num_responses)
    texts = ["x" * length for length in random.integers(1, 40, num)]
    pairs = pairs_within(prompts, [f"{text}{place}" for place, text in enumerate(texts)])
    features = random.normal(size=(num, NUM_FEATURES))
    lengths = np.array([len(text) for text in texts], float)
    return Candidates(mean, mean - half, mean + half, features, lengths, prompts, pairs)


def planted_candidates(seed=0, num_prompts=60):
    """Return features, true scores and prompts of a hard case.

    Each prompt has six responses: three nearly the same (one cluster for all prompts), two that tie
    exactly with each other, and one that differs in a direction of its own.
    """
    random = np.random.default_rng(seed)
    weights = random.normal(size=NUM_FEATURES) * 2
    cluster = random.normal(size=NUM_FEATURES)
    rows = []
    for _ in range(num_prompts):
        rows += [cluster + 0.01 * random.normal(size=NUM_FEATURES) for _ in range(3)]
        tied = random.normal(size=NUM_FEATURES)
        sideways = random.normal(size=NUM_FEATURES)
        sideways -= weights * (sideways @ weights) / (weights @ weights)
        rows += [tied, tied + 2 * sideways, random.normal(size=NUM_FEATURES)]
    features = np.array(rows)
    return features, features @ weights, np.repeat(np.arange(num_prompts), 6)
