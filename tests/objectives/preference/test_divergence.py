import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import AlphaDivergence, ForwardKL, JensenShannon, ReverseKL
from tests.objectives.agreement import assert_agrees, floats
from tests.oracles import preference as oracle

DIVERGENCES = [
    (ReverseKL(), oracle.reverse_kl),
    (ForwardKL(), oracle.forward_kl),
    (JensenShannon(), oracle.jensen_shannon),
    (AlphaDivergence(0.3), lambda u: oracle.alpha_divergence(u, 0.3)),
]
every_divergence = pytest.mark.parametrize(
    ("divergence", "derivative"), DIVERGENCES, ids=lambda value: type(value).__name__
)


@every_divergence
@given(log_ratio=floats((5,), -10, 10))
def test_scores_are_the_derivative_and_zero_where_nothing_moved(divergence, derivative, log_ratio):
    expected = [derivative(math.exp(x)) - derivative(1.0) for x in log_ratio.tolist()]
    assert_agrees(divergence.score(log_ratio), expected)
    assert divergence.score(torch.zeros(1)).tolist() == pytest.approx([0.0], abs=1e-7)


@every_divergence
@given(log_ratio=floats((5,), -15, 15))
def test_scores_grow_with_the_log_ratio(divergence, derivative, log_ratio):
    ordered = log_ratio.sort().values
    assert (divergence.score(ordered).diff() >= 0).all()


def test_alpha_leads_from_reverse_to_forward_kl():
    log_ratio = torch.linspace(-3, 3, 7, dtype=torch.float64)
    near_reverse, near_forward = AlphaDivergence(1e-9), AlphaDivergence(1 - 1e-9)
    torch.testing.assert_close(near_reverse.score(log_ratio), log_ratio, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        near_forward.score(log_ratio), ForwardKL().score(log_ratio), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, math.nan])
def test_alpha_between_the_two(alpha):
    with pytest.raises(ConfigError, match=r"divergence\.alpha"):
        AlphaDivergence(alpha)
