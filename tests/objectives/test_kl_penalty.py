import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import KLPenalty, kl_k1, kl_k2, kl_k3, kl_k3_straight_through
from tests.objectives.agreement import assert_agrees, both_precisions, normal
from tests.objectives.policy.cases import PENALTIES

every_case = pytest.mark.parametrize("case", PENALTIES, ids=lambda case: repr(case.penalty))


def columns(dtype=torch.float64, count=40):
    new = -torch.rand(count, dtype=torch.float64) * 5
    return [(new + normal(count, scale=scale)).to(dtype) for scale in (0.0, 0.3, 0.6)]


@both_precisions
@every_case
def test_terms_of_the_loss_agree_with_the_oracle(case, dtype):
    new, old, reference = columns(dtype)
    tokens = zip(new.tolist(), old.tolist(), reference.tolist(), strict=True)
    golden = [case.oracle(*token) for token in tokens]
    assert_agrees(case.penalty.loss(new, old, reference), golden, dtype)


@pytest.mark.parametrize("estimate", ["k1", "k2", "k3"])
def test_in_the_reward_it_is_the_plain_estimate(estimate):
    new, _, reference = columns()
    plain = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[estimate](new, reference)
    assert torch.equal(KLPenalty("reward", estimate).of_tokens(new, reference), plain)


@every_case
def test_gradients_are_those_of_finite_differences(case):
    if case.penalty.estimate == "k3_straight_through":
        pytest.skip("its gradient is another one's: see below")
    new, old, reference = columns(count=6)
    assert torch.autograd.gradcheck(
        lambda logprobs: case.penalty.loss(logprobs, old, reference), new.requires_grad_()
    )


def test_straight_through_has_the_value_of_k3_and_the_gradient_of_k2():
    new, _, reference = columns()
    new.requires_grad_()
    through = kl_k3_straight_through(new, reference)
    assert torch.equal(through, kl_k3(new, reference))
    of_k2 = torch.autograd.grad(kl_k2(new, reference).sum(), new)
    assert torch.equal(torch.autograd.grad(through.sum(), new)[0], of_k2[0])


def exact_kl(logits, reference):
    logprobs, others = logits.log_softmax(-1), reference.log_softmax(-1)
    return (logprobs.exp() * (logprobs - others)).sum()


@pytest.mark.parametrize(
    ("penalty", "is_exact"),
    [
        (KLPenalty("loss", "k2"), True),
        (KLPenalty("loss", "k3_straight_through"), True),
        (KLPenalty("loss", "k3", importance_weighted=True), True),
        (KLPenalty("loss", "k1", importance_weighted=True), True),
        (KLPenalty("loss", "k3"), False),  # that of KL(reference || policy)
    ],
    ids=repr,
)
def test_whose_expected_gradient_is_that_of_the_kl(penalty, is_exact):
    """Over all tokens of a vocabulary, each as often as the policy draws it."""
    logits, reference = normal(5).requires_grad_(), normal(5)
    (exact,) = torch.autograd.grad(exact_kl(logits, reference), logits)
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.detach().exp()
    term = penalty.loss(logprobs, logprobs.detach(), reference.log_softmax(-1))
    (expected,) = torch.autograd.grad((probabilities * term).sum(), logits)
    assert torch.allclose(expected, exact) == is_exact


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimate": "k3_straight_through"}, "rewards have none"),
        ({"importance_weighted": True}, "no effect on rewards"),
        ({"place": "loss"}, "k1 has no effect in the loss"),
    ],
)
def test_what_has_no_effect_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        KLPenalty(**settings)


@pytest.mark.parametrize("name", ["place", "estimate"])
def test_a_choice_that_is_none_is_refused(name):
    with pytest.raises((ConfigError, TypeError), match=name):
        KLPenalty(**{name: "nowhere"})
