"""When nobody else is asked."""

import math

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.early_stop import EarlyStop
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.reading import StoredTask

FIRST, SECOND = Judgment("judged", (1, 2)), Judgment("judged", (2, 1))
TIE, SKIP = Judgment("tie"), Judgment("skip")


def posterior(judgments, accuracy):
    """Return the larger side's posterior by Bayes' rule, one judgment after the other."""
    first = 0.5
    for ranks in judgments:
        likely = accuracy if ranks == (1, 2) else 1 - accuracy
        first = first * likely / (first * likely + (1 - first) * (1 - likely))
    return max(first, 1 - first)


@pytest.mark.parametrize("accuracy", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("ranks", [[(1, 2)] * n + [(2, 1)] * m for n in range(6) for m in range(4)])
def test_the_posterior_is_bayes(ranks, accuracy):
    judgments = [Judgment("judged", one) for one in ranks]
    expected = len(ranks) >= 2 and posterior(ranks, accuracy) >= 0.95
    assert EarlyStop(accuracy=accuracy).holds(judgments) == expected


def test_ties_and_skips_are_no_votes():
    stop = EarlyStop(accuracy=0.9)
    assert stop.holds([FIRST, FIRST])
    assert not stop.holds([FIRST, SKIP])
    assert not stop.holds([TIE, TIE, TIE])
    assert not stop.holds([SECOND, FIRST])
    assert not EarlyStop(accuracy=0.99).holds([FIRST])  # sure enough, but it is one labeler


def stored(judgments, metadata=None, kind="comparison", repeats=None):
    content = JudgedTask("Hi", ("a", "b"), tuple(judgments), None, metadata or {})
    return StoredTask(1, kind, repeats, content)


def test_what_measures_is_never_stopped():
    sure = [FIRST] * 4
    stop = EarlyStop()
    assert stop.is_decided(stored(sure))
    assert stop.is_decided(stored(sure, {"share": "active"}))
    for share in ("random", "gold", "audit"):
        assert not stop.is_decided(stored(sure, {"share": share}))
    assert not stop.is_decided(stored([*sure, FIRST._replace(is_gold=True)]))
    assert not stop.is_decided(stored(sure, repeats=7))
    assert not stop.is_decided(stored(sure, kind="rating"))


@pytest.mark.parametrize("change", [{"accuracy": 0.5}, {"posterior": 1.0}, {"accuracy": math.nan}])
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match="early_stop"):
        EarlyStop(**change)
