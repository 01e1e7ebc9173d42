import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout.sampling import (
    Sampling,
    draw_tokens,
    rule_out_stops,
    sums_by_products,
    truncate_logits,
    uniform_streams,
)

NEVER = float("-inf")
PLAIN = Sampling()


def evenly_spaced(count):
    """Return `count` uniforms that split [0, 1) into equal parts: no randomness is left."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()


def draw_many(logits, uniforms, sampling=PLAIN):
    return draw_tokens(logits.expand(len(uniforms), -1), uniforms, sampling).tokens


def expected_tokens(logits, uniforms):
    """Invert the cumulative distribution in float64 numpy, one long sum."""
    weights = np.exp(logits.double().numpy() - float(logits.max()))
    ends = np.cumsum(weights)
    return np.searchsorted(ends, uniforms.double().numpy() * ends[-1], side="right")


@pytest.mark.parametrize("vocabulary", [2, 7, 127, 128, 129, 300, 1000])
def test_draws_invert_the_cumulative_distribution(vocabulary):
    logits, uniforms = 3 * torch.randn(vocabulary), evenly_spaced(501)
    tokens = draw_many(logits, uniforms).numpy()
    expected = expected_tokens(logits, uniforms)
    # A uniform within rounding of a boundary may fall on either side of it.
    assert (tokens == expected).mean() >= 0.998
    assert np.abs(tokens - expected).max() <= 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_frequencies_are_the_softmax_at_the_temperature(temperature):
    logits, count = torch.randn(300), 20_000
    tokens = draw_many(logits, evenly_spaced(count), Sampling(temperature=temperature))
    shares = torch.bincount(tokens, minlength=300) / count
    expected = (logits.double() / temperature).softmax(-1)
    assert (shares - expected).abs().max() <= 1.5 / count


def test_frequencies_over_the_random_streams_pass_a_chi_square_test():
    logits, count, vocabulary = torch.randn(200), 20_000, 200
    uniforms = uniform_streams(7, list(range(count // 20)), 20).flatten()
    observed = torch.bincount(draw_many(logits, uniforms), minlength=vocabulary)
    expected = count * logits.double().softmax(-1)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = vocabulary - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_each_row_is_drawn_from_its_own_logits():
    logits = torch.full((4, 200), -50.0)
    likely = torch.tensor([3, 199, 0, 128])
    logits[torch.arange(4), likely] = 50.0
    assert torch.equal(draw_tokens(logits, torch.rand(4), PLAIN).tokens, likely)


@given(
    st.lists(st.booleans(), min_size=2, max_size=300).filter(any),
    st.one_of(st.floats(0, 1, exclude_max=True, width=32), st.just(1 - 2**-24), st.just(0.0)),
)
def test_an_impossible_token_is_never_drawn(is_possible, uniform):
    is_possible = torch.tensor(is_possible)
    logits = torch.where(is_possible, torch.randn(len(is_possible)), NEVER)
    assert is_possible[draw_many(logits, torch.tensor([uniform]))].all()


@pytest.mark.parametrize("size", [2, 130, 5000])
def test_the_ends_of_the_unit_interval_reach_the_first_and_last_possible_token(size):
    logits = torch.zeros(size)
    logits[[0, -1]] = NEVER
    if size == 2:
        logits[1] = 0.0
    largest = 1 - 2**-24  # the largest float32 below 1
    first, last = draw_many(logits, torch.tensor([0.0, largest])).tolist()
    possible = logits.isfinite().nonzero()[:, 0]
    assert (first, last) == (int(possible[0]), int(possible[-1]))


@pytest.mark.parametrize("num_possible", [1, 60, 128, 129, 200])
def test_a_threshold_rounded_up_to_the_very_end_takes_the_last_possible_token(num_possible):
    # No uniform is 1: it stands for what rounding could make of the products and sums.
    logits = torch.full((300,), NEVER)
    logits[:num_possible] = torch.randn(num_possible)
    assert draw_many(logits, torch.tensor([1.0])).tolist() == [num_possible - 1]


def test_large_logits_do_not_overflow():
    logits = torch.tensor([1e4, 1e4, -1e4, 3e38])
    assert draw_many(logits, torch.tensor([0.0, 0.5, 0.999])).tolist() == [3, 3, 3]
    assert draw_many(logits[:3], torch.tensor([0.2, 0.7])).tolist() == [0, 1]


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(temperature=0.0)], ids=["drawn", "likeliest"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(bad, sampling):
    logits = torch.randn(3, 200)
    logits[1, 150] = bad
    assert draw_tokens(logits, torch.rand(3), sampling).is_sound.tolist() == [True, False, True]


def test_a_row_without_any_possible_token_is_told():
    logits = torch.full((2, 200), -math.inf)
    logits[0, 3] = 0.0
    for sampling in (PLAIN, Sampling(temperature=0.0)):
        assert draw_tokens(logits, torch.rand(2), sampling).is_sound.tolist() == [True, False]


def test_temperature_zero_takes_the_likeliest_token():
    logits = torch.randn(5, 300)
    greedy = draw_tokens(logits, torch.rand(5), Sampling(temperature=0.0, top_k=3, top_p=0.2))
    assert torch.equal(greedy.tokens, logits.argmax(-1))
    assert greedy.logprobs.tolist() == [0.0] * 5


def test_logits_are_left_as_they_were():
    logits = torch.randn(3, 50)
    before = logits.clone()
    draw_tokens(logits, torch.rand(3), Sampling(temperature=0.5, top_k=4, top_p=0.5))
    assert torch.equal(logits, before)


def survivors(probabilities, sampling):
    logits = torch.tensor([probabilities]).log()
    kept = truncate_logits(logits, sampling)[0]
    is_kept = kept.isfinite()
    assert torch.equal(kept[is_kept], logits[0][is_kept])
    return is_kept.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (0, [0, 1, 2, 3]),
        (1, [2]),
        (2, [0, 2]),
        (3, [0, 1, 2]),
        (4, [0, 1, 2, 3]),
        (9, [0, 1, 2, 3]),
    ],
)
def test_top_k_keeps_the_k_likeliest(top_k, expected):
    assert survivors([0.3, 0.15, 0.5, 0.05], Sampling(top_k=top_k)) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, [2]),
        (0.49, [2]),
        (0.51, [0, 2]),
        (0.79, [0, 2]),
        (0.81, [0, 1, 2]),
        (0.94, [0, 1, 2]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_with_the_mass(top_p, expected):
    assert survivors([0.3, 0.15, 0.5, 0.05], Sampling(top_p=top_p)) == expected


def test_top_p_counts_the_mass_that_top_k_left():
    # Of 0.5 and 0.3 renormalised, 0.625 alone reaches 0.6.
    assert survivors([0.3, 0.15, 0.5, 0.05], Sampling(top_k=2, top_p=0.6)) == [2]


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.0, [0, 1, 2, 3]), (0.09, [0, 1, 2, 3]), (0.11, [0, 1, 2]), (0.59, [0, 2]), (1.0, [2])],
)
def test_min_p_keeps_what_is_likely_beside_the_likeliest(min_p, expected):
    assert survivors([0.3, 0.15, 0.5, 0.05], Sampling(min_p=min_p)) == expected


def test_stop_tokens_cannot_be_drawn_where_a_response_is_too_short():
    logits = torch.randn(2, 300)
    allowed = logits.clone()
    rule_out_stops(allowed, torch.tensor([7, 299]), is_too_short=torch.tensor([False, True]))
    assert torch.equal(allowed[0], logits[0])
    is_changed = (allowed != logits)[1].nonzero()[:, 0]
    assert is_changed.tolist() == [7, 299]
    assert allowed[1, is_changed].tolist() == [NEVER, NEVER]


@pytest.mark.parametrize(
    "sampling",
    [PLAIN, Sampling(temperature=0.6), Sampling(top_k=20), Sampling(top_p=0.7, temperature=1.4)],
)
def test_log_probabilities_are_those_of_the_distribution_that_was_drawn_from(sampling):
    logits = 2 * torch.randn(50, 300)
    drawn = draw_tokens(logits, torch.rand(50), sampling)
    scaled = truncate_logits(logits / sampling.temperature, sampling).double()
    expected = scaled.log_softmax(-1).gather(1, drawn.tokens[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs.double(), expected, rtol=1e-6, atol=1e-6)


def test_what_distorts_the_policy_is_named():
    assert Sampling(temperature=0.7, max_new_tokens=5).distortions == ()
    assert Sampling(top_k=5, min_p=0.1).distortions == ("top_k", "min_p")
    assert Sampling(top_p=0.9, min_new_tokens=1).distortions == ("top_p", "min_new_tokens")


def test_truncated_draws_follow_the_renormalised_rest():
    logits, count = torch.tensor([0.3, 0.15, 0.5, 0.05]).log(), 8000
    tokens = draw_many(logits, evenly_spaced(count), Sampling(top_k=2))
    shares = torch.bincount(tokens, minlength=4) / count
    assert shares.tolist() == pytest.approx([0.375, 0, 0.625, 0], abs=1e-3)


def test_temperature_comes_before_top_p():
    # At temperature 2 the likeliest of [0.9, 0.1] has 0.75: no longer enough for top_p 0.8.
    logits, uniforms = torch.tensor([0.9, 0.1]).log(), evenly_spaced(100)
    assert set(draw_many(logits, uniforms, Sampling(top_p=0.8)).tolist()) == {0}
    warm = Sampling(top_p=0.8, temperature=2.0)
    assert set(draw_many(logits, uniforms, warm).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_new_tokens": 33}, "min_new_tokens is 33, more than max_new_tokens 32"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; it must be at least 0"),
        ({"temperature": math.nan}, "temperature is nan; it must be at least 0"),
        ({"top_p": math.nan}, "top_p is nan; it must be at most 1 and above 0"),
        ({"stop_ids": (3, -1)}, r"stop_ids must be token ids, got \[3, -1\]"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)


def test_a_stream_is_named_by_seed_and_id_alone():
    streams = uniform_streams(3, [5, 9, 5], 8)
    assert torch.equal(streams[0], streams[2])
    assert torch.equal(uniform_streams(3, [9], 12)[0, :8], streams[1])
    others = torch.cat([uniform_streams(4, [5], 8), uniform_streams(3, [6], 8), streams[1:2]])
    assert not any(torch.equal(other, streams[0]) for other in others)
    assert streams.dtype == torch.float32


@pytest.mark.parametrize(
    ("seed", "stream"), [(-1, 3), (0, -(2**20)), (2**63, -(2**20)), (2**70, 2**80)]
)
def test_any_integers_name_a_stream(seed, stream):
    streams = uniform_streams(seed, [stream, stream + 1], 4)
    assert torch.equal(streams, uniform_streams(seed, [stream, stream + 1], 4))
    assert not torch.equal(streams[0], streams[1])


def test_uniforms_fill_the_unit_interval():
    uniforms = uniform_streams(0, list(range(400)), 50).flatten()
    assert 0 <= float(uniforms.min()) < 1e-3
    assert 0.999 < float(uniforms.max()) < 1
    counts = torch.histc(uniforms, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 19 + 4 * math.sqrt(2 * 19)


def test_no_sequences():
    assert uniform_streams(0, [], 3).shape == (0, 3)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 20_000])
def test_running_sums_without_cumsum_are_those_of_cumsum(length):
    values = torch.rand(3, length, dtype=torch.float64)
    assert torch.allclose(sums_by_products(values), values.cumsum(-1), rtol=1e-12)
