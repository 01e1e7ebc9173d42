"""The heads know what they were told, and know what they do not know."""

import numpy as np
import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.uncertainty import HeadsConfig, JudgedPairs, estimate_bounds

ONE_PROMPT = np.zeros(300, np.int64)
NOTHING = JudgedPairs(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0))


def judged_line(num_pairs=200, seed=0):
    """Return features of which the first decides, and judged pairs among the first half of them."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(200, 8))
    scores = 2 * features[:, 0]
    pairs = random.integers(0, 100, size=(num_pairs, 2))
    probability = 1 / (1 + np.exp(scores[pairs[:, 1]] - scores[pairs[:, 0]]))
    return features, scores, JudgedPairs(pairs, probability, np.ones(num_pairs))


def test_before_any_judgment_the_heads_are_as_unsure_as_asked():
    features = np.random.default_rng(0).normal(size=(300, 8))
    bounds = estimate_bounds(
        features, ONE_PROMPT[: len(features)], NOTHING, HeadsConfig(prior_deviation=2.0, beta=1.0)
    )
    assert np.mean((bounds.upper - bounds.lower) / 2) == pytest.approx(2.0, rel=0.25)
    assert bounds.mean == pytest.approx((bounds.lower + bounds.upper) / 2)


def test_judgments_order_the_responses_that_were_not_judged():
    features, scores, judged = judged_line()
    bounds = estimate_bounds(features, ONE_PROMPT[: len(features)], judged, HeadsConfig())
    assert np.corrcoef(bounds.mean[100:], scores[100:])[0, 1] > 0.9


def test_what_was_judged_is_surer_than_what_is_far_away():
    features, _, judged = judged_line()
    features[150:, 1:] += 6  # nothing like it was judged
    spread = np.subtract(
        *estimate_bounds(features, ONE_PROMPT[: len(features)], judged, HeadsConfig())[:0:-1]
    )
    assert spread[150:].mean() > 2 * spread[:100].mean()


def test_more_judgments_make_surer():
    few, many = (
        np.subtract(
            *estimate_bounds(features, ONE_PROMPT[: len(features)], judged, HeadsConfig())[:0:-1]
        ).mean()
        for features, _, judged in (judged_line(8), judged_line(800))
    )
    assert many < 0.8 * few


def test_probability_and_weight_count():
    features, _, judged = judged_line(50)
    turned = judged._replace(probability=1 - judged.probability)
    config = HeadsConfig(num_heads=5)
    one, other = (
        estimate_bounds(features, ONE_PROMPT[: len(features)], each, config).mean
        for each in (judged, turned)
    )
    assert np.corrcoef(one, other)[0, 1] < 0
    ignored = judged._replace(weight=np.where(np.arange(50) < 25, 1.0, 0.0))
    assert not np.allclose(
        one, estimate_bounds(features, ONE_PROMPT[: len(features)], ignored, config).mean
    )


def test_the_same_seed_gives_the_same_bounds_whatever_was_drawn_before():
    features, _, judged = judged_line(20)
    config = HeadsConfig(num_heads=3, num_steps=5)
    first = estimate_bounds(features, ONE_PROMPT[: len(features)], judged, config)
    np.random.default_rng(1)
    for one, other in zip(
        first, estimate_bounds(features, ONE_PROMPT[: len(features)], judged, config), strict=True
    ):
        assert one.tolist() == other.tolist()
    other = estimate_bounds(
        features, ONE_PROMPT[: len(features)], judged, HeadsConfig(num_heads=3, num_steps=5, seed=1)
    )
    assert other.mean.tolist() != first.mean.tolist()


@pytest.mark.parametrize(
    ("name", "value"), [("num_heads", 1), ("learning_rate", 0), ("hold", -1), ("beta", 0)]
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"heads.{name} is {value}"):
        HeadsConfig(**{name: value})


def test_only_differences_within_a_prompt_count():
    """What all responses to a prompt share is nothing that anybody is unsure of."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(50), 2)
    features = np.repeat(random.normal(size=(50, 8)), 2, axis=0)
    features += 1e-3 * random.normal(size=features.shape)
    bounds = estimate_bounds(features, prompts, NOTHING, HeadsConfig(num_heads=5))
    assert np.abs(bounds.mean).max() < 0.02
    assert (bounds.upper - bounds.lower).max() < 0.02
