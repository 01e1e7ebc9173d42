import torch

from lit_rlhf.objectives import CISPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.policy.cases import random_tokens


def test_every_token_keeps_a_gradient_weighted_by_its_bounded_ratio():
    tokens = random_tokens(spread=1.5)
    logprobs = tokens.logprobs.clone().requires_grad_()
    output = CISPO(1.5)(tokens._replace(logprobs=logprobs))
    output.losses.sum().backward()
    weight = (tokens.logprobs - tokens.old_logprobs).exp().clamp(max=1.5)
    assert_agrees(logprobs.grad, -weight * tokens.advantages)
    assert output.is_clipped.any()
    assert (logprobs.grad != 0).all()


def test_old_logprobs_have_no_gradient():
    tokens = random_tokens()
    old = tokens.old_logprobs.clone().requires_grad_()
    logprobs = tokens.logprobs.clone().requires_grad_()
    loss = CISPO()(tokens._replace(old_logprobs=old, logprobs=logprobs)).losses.sum()
    assert torch.autograd.grad(loss, old, allow_unused=True) == (None,)
