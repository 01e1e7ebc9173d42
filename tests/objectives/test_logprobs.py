import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import chunked_logprobs
from lit_rlhf.objectives import logprobs as implementation
from lit_rlhf.objectives.precision import at_least_float32
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    normal,
)
from tests.oracles import logprobs as oracle

# How logits are made of products.
FORMS = [
    dict(zip(("temperature", "softcap", "scale"), numbers, strict=True))
    for numbers in [(1.0, None, 1.0), (0.7, None, 1.0), (1.0, 3.0, 1.0), (1.3, 2.0, 0.5)]
]
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


def full_logits(hidden, weight, bias, *, softcap=None, scale=1.0, **_):
    raw = hidden @ weight.t()
    raw = scale * (raw if bias is None else raw + bias)
    return raw if softcap is None else softcap * torch.tanh(raw / softcap)


def projection(num_rows, width=4, vocabulary=11, *, dtype=torch.float64):
    """Hidden states, weight, bias (all with gradient) and targets."""
    tensors = [
        normal(*shape, dtype=dtype).requires_grad_()
        for shape in ((num_rows, width), (vocabulary, width), (vocabulary,))
    ]
    return *tensors, torch.randint(vocabulary, (num_rows,))


def token_logprobs(logits, targets, *, temperature=1.0):
    """Log-probabilities read off whole logits."""
    logprobs = (at_least_float32(logits) / temperature).log_softmax(-1)
    return logprobs.gather(-1, targets[..., None]).squeeze(-1)


def token_entropy(logits, *, temperature=1.0):
    """Entropies of whole logits; a forbidden token has none, and no gradient that is NaN."""
    logprobs = (at_least_float32(logits) / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)


@both_precisions
@each_form
@pytest.mark.parametrize("has_bias", [True, False])
def test_chunked_scores_agree_with_the_softmax(form, has_bias, dtype):
    hidden, weight, bias, targets = projection(5, dtype=dtype)
    bias = bias if has_bias else None
    scores = chunked_logprobs(
        hidden, weight, targets, bias=bias, chunk_size=2, with_entropy=True, **form
    )
    parts = [None if part is None else part.detach().numpy() for part in (hidden, weight, bias)]
    logits = oracle.logits(*parts, **form)
    assert_agrees(scores.logprobs, oracle.token_logprobs(logits, targets.numpy()), dtype)
    assert_agrees(scores.entropy, oracle.token_entropy(logits), dtype)


@both_precisions
@each_form
@pytest.mark.parametrize("num_rows", [0, 1, 7])
@pytest.mark.parametrize("chunk_size", [1, 3, 512])
def test_chunked_gradients_equal_those_through_full_logits(form, num_rows, chunk_size, dtype):
    hidden, weight, bias, targets = projection(num_rows, dtype=dtype)
    scores = chunked_logprobs(
        hidden, weight, targets, bias=bias, chunk_size=chunk_size, with_entropy=True, **form
    )
    logits = full_logits(hidden, weight, bias, **form)
    logprobs = token_logprobs(logits, targets, temperature=form["temperature"])
    entropy = token_entropy(logits, temperature=form["temperature"])
    assert_agrees(scores.logprobs, logprobs.detach(), dtype)
    assert_agrees(scores.entropy, entropy.detach(), dtype)
    first, second = normal(num_rows, dtype=dtype), normal(num_rows, dtype=dtype)
    inputs = (hidden, weight, bias)
    for own, plain in [
        ((scores.logprobs * first).sum(), (logprobs * first).sum()),
        ((scores.entropy * second).sum(), (entropy * second).sum()),
        (
            (scores.logprobs * first + scores.entropy * second).sum(),
            (logprobs * first + entropy * second).sum(),
        ),
    ]:
        actual = torch.autograd.grad(own, inputs, retain_graph=True)
        expected = torch.autograd.grad(plain, inputs, retain_graph=True)
        for actual_grad, expected_grad in zip(actual, expected, strict=True):
            assert_agrees(actual_grad, expected_grad, dtype)


@each_form
@pytest.mark.parametrize("with_entropy", [True, False])
def test_chunked_gradients_are_those_of_finite_differences(form, with_entropy):
    hidden, weight, bias, targets = projection(3, width=2, vocabulary=5)

    def scores(hidden, weight, bias):
        result = chunked_logprobs(
            hidden, weight, targets, bias=bias, chunk_size=2, with_entropy=with_entropy, **form
        )
        return tuple(column for column in result if column is not None)

    assert torch.autograd.gradcheck(scores, (hidden, weight, bias))


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3)))
def test_only_the_gradients_that_are_needed_are_made(needed):
    hidden, weight, bias, targets = projection(4)
    inputs = [
        tensor.detach().requires_grad_(wanted)
        for tensor, wanted in zip((hidden, weight, bias), needed, strict=True)
    ]
    logprobs = chunked_logprobs(*inputs[:2], targets, bias=inputs[2], chunk_size=3).logprobs
    assert logprobs.requires_grad == any(needed)
    if not any(needed):
        return
    logprobs.sum().backward()
    plain = token_logprobs(full_logits(hidden, weight, bias), targets)
    expected = torch.autograd.grad(plain.sum(), (hidden, weight, bias))
    for tensor, wanted, gradient in zip(inputs, needed, expected, strict=True):
        if wanted:
            assert_agrees(tensor.grad, gradient)
        else:
            assert tensor.grad is None


def test_entropy_is_absent_unless_asked_for():
    hidden, weight, _, targets = projection(3)
    assert chunked_logprobs(hidden, weight, targets).entropy is None


@pytest.mark.parametrize("block_elements", [1, 22, 10**6])
def test_cache_blocks_do_not_change_the_result(monkeypatch, block_elements):
    hidden, weight, bias, targets = projection(7)

    def run():
        scores = chunked_logprobs(
            hidden, weight, targets, bias=bias, softcap=2.0, chunk_size=3, with_entropy=True
        )
        loss = (scores.logprobs + scores.entropy).square().sum()
        return *scores, *torch.autograd.grad(loss, (hidden, weight, bias))

    expected = run()
    monkeypatch.setattr(implementation, "_BLOCK_ELEMENTS", block_elements)
    for actual, wanted in zip(run(), expected, strict=True):
        assert_agrees(actual, wanted.detach())


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_no_more_than_a_chunk_of_logits_is_ever_held():
    num_rows, vocabulary, chunk_size = 64, 40, 8
    hidden, weight, bias, targets = projection(num_rows, width=2, vocabulary=vocabulary)
    with LargestTensor() as largest:
        scores = chunked_logprobs(
            hidden, weight, targets, bias=bias, chunk_size=chunk_size, with_entropy=True
        )
        (scores.logprobs + scores.entropy).sum().backward()
    assert largest.num_elements <= chunk_size * vocabulary


@pytest.mark.parametrize("under_autocast", [True, False])
@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float32])
def test_float32_weights_with_bfloat16_compute(hidden_dtype, under_autocast):
    hidden, weight, bias, targets = projection(9, width=16, vocabulary=64, dtype=torch.float32)
    with torch.no_grad():
        hidden.copy_(hidden.bfloat16())  # so that the same numbers arrive in either type
    given = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        scores = chunked_logprobs(
            given, weight, targets, bias=bias, chunk_size=4, with_entropy=True
        )
        loss = (scores.logprobs + scores.entropy).sum()
    loss.backward()
    logits = full_logits(hidden, weight, bias)
    expected = token_logprobs(logits, targets), token_entropy(logits)
    expected_grads = torch.autograd.grad(sum(expected).sum(), (hidden, weight, bias))
    # Products in float32 unless hidden or autocast says bfloat16, which has 8 bits.
    is_exact = hidden_dtype == torch.float32 and not under_autocast
    tolerance = 1e-5 if is_exact else 4e-2
    for actual, wanted in zip(scores, expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    for tensor, wanted in zip((given, weight, bias), expected_grads, strict=True):
        assert tensor.grad.dtype == tensor.dtype
        error = (tensor.grad.float() - wanted).norm() / wanted.norm()
        assert error < (1e-5 if is_exact else 1e-2)


def test_autocast_multiplies_float32_states_in_its_own_type():
    hidden, weight, _, targets = projection(5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = chunked_logprobs(hidden, weight, targets).logprobs
    in_bfloat16 = chunked_logprobs(hidden.bfloat16(), weight, targets).logprobs
    assert torch.equal(under_autocast, in_bfloat16)


def test_an_autocast_around_the_backward_pass_changes_nothing():
    hidden, weight, _, targets = projection(5, dtype=torch.float32)
    loss = chunked_logprobs(hidden, weight, targets).logprobs.sum()
    expected = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(loss, (hidden, weight))
    for actual_grad, expected_grad in zip(actual, expected, strict=True):
        assert torch.equal(actual_grad, expected_grad)


def test_a_forbidden_token_keeps_scores_and_gradients_finite():
    hidden, weight, bias, _ = projection(3)
    with torch.no_grad():
        bias[4] = -math.inf
    targets = torch.tensor([0, 1, 2])
    scores = chunked_logprobs(hidden, weight, targets, bias=bias, with_entropy=True)
    logits = full_logits(hidden, weight, bias)
    plain = token_logprobs(logits, targets) + token_entropy(logits)
    assert_agrees(scores.logprobs + scores.entropy, plain.detach())
    actual = torch.autograd.grad((scores.logprobs + scores.entropy).sum(), (hidden, weight))
    keep = torch.arange(11) != 4
    logits = full_logits(hidden, weight[keep], bias[keep])
    without = token_logprobs(logits, targets) + token_entropy(logits)
    expected = torch.autograd.grad(without.sum(), (hidden, weight))
    for actual_grad, expected_grad in zip(actual, expected, strict=True):
        assert_agrees(actual_grad, expected_grad)


def test_the_arguments_are_left_as_they_were():
    tensors = projection(5)
    copies = [tensor.detach().clone() for tensor in tensors]
    hidden, weight, bias, targets = tensors
    scores = chunked_logprobs(
        hidden, weight, targets, bias=bias, softcap=2.0, temperature=0.5, with_entropy=True
    )
    (scores.logprobs + scores.entropy).sum().backward()
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature):
    hidden, weight, _, targets = projection(2)
    with pytest.raises(ConfigError, match="temperature"):
        chunked_logprobs(hidden, weight, targets, temperature=temperature)


@pytest.mark.parametrize("setting", [{"softcap": 0.0}, {"chunk_size": 0}])
def test_settings_out_of_range_are_refused(setting):
    hidden, weight, _, targets = projection(2)
    with pytest.raises(ConfigError, match=next(iter(setting))):
        chunked_logprobs(hidden, weight, targets, **setting)


def test_shapes_that_do_not_fit_are_refused():
    hidden, weight, bias, targets = projection(4)
    for arguments in [
        (hidden, weight, targets[:3], bias),
        (hidden, weight[:, :2], targets, bias),
        (hidden, weight, targets, bias[:1]),
    ]:
        with pytest.raises(SHAPE_ERRORS):
            chunked_logprobs(*arguments[:3], bias=arguments[3])
