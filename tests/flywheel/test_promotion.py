"""Promoted is what is surely better and within its limits."""

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.flywheel.promotion import decide
from lit_rlhf.flywheel.settings import GateConfig


def figures(low=0.1, kl=2.0, length=5.0, perplexity=20.0):
    def figure(metric, value, subject="new", against="", judge="", low=None):
        low = value if low is None else low
        return Figure("", subject, metric, Estimate(value, low, value, 9), "", against, judge)

    return [
        figure("score_difference", 0.5, against="sft", judge="gate", low=low),
        figure("score_difference", 9.0, against="sft", judge="reward"),
        figure("kl", kl),
        figure("length", length),
        figure("length", 5.0, subject="sft"),
        figure("perplexity", perplexity),
        figure("perplexity", 20.0, subject="sft"),
    ]


GATE = GateConfig(
    "reward:x", max_kl=3, max_length_ratio=2, max_perplexity_ratio=1.5, perplexity_data="texts"
)


def test_what_is_surely_better_is_promoted():
    promotion = decide(figures(), GATE, "sft")
    assert promotion.is_promoted
    assert promotion.reasons == []
    assert promotion.gain == {"value": 0.5, "low": 0.1, "high": 0.5, "n": 9}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"low": 0.0}, "lower bound is 0.000"),
        ({"low": float("nan")}, "lower bound is nan"),
        ({"kl": 3.5}, "KL is 3.50 nats, over 3"),
        ({"length": 11.0}, "2.20 times as long"),
        ({"length": 2.0}, "0.40 times as long"),
        ({"perplexity": 31.0}, "perplexity on held-out text is 1.55 times"),
    ],
)
def test_what_is_not_sure_or_out_of_its_limits_is_not(change, reason):
    promotion = decide(figures(**change), GATE, "sft")
    assert not promotion.is_promoted
    assert len(promotion.reasons) == 1
    assert reason in promotion.reasons[0]


def test_limits_that_are_not_set_do_not_count():
    gate = GateConfig("reward:x", max_length_ratio=2)
    assert decide(figures(kl=99, perplexity=1e6), gate, "sft").is_promoted


def test_an_evaluation_without_the_opponent_is_refused():
    with pytest.raises(DataError, match="0 figures"):
        decide(figures(), GATE, "promoted")
