import pytest
import torch
from torch.nn import functional

from lit_rlhf.cpu import attention
from lit_rlhf.cpu.attention import ATTENTION_NAME, LONGEST, short_attention
from tests.models.examples import lively_model

MODELS = ("eager", ATTENTION_NAME)


def inputs(heads=4, kv_heads=2, *, length=5, num_keys=5, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(3, heads, length, width), *2 * [(3, kv_heads, num_keys, width)]]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def causal(length, num_keys=None):
    num_keys = num_keys or length
    return torch.ones(length, num_keys, dtype=torch.bool).tril(num_keys - length)


def by_torch(query, key, value, attention_mask, scaling):
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("num_keys", [5, 7])
def test_output_and_gradients_are_those_of_torch(heads, kv_heads, num_keys):
    tensors = inputs(heads, kv_heads, num_keys=num_keys)
    masks = causal(5, num_keys).expand(3, 1, -1, -1).clone()
    masks[1, :, :, 0] = False
    masks[1, :, 0, -1] = True  # no query sees nothing
    weights = torch.randn(3, 5, heads, 8, dtype=torch.float64)
    results = []
    for attend in (short_attention, by_torch):
        output = attend(*tensors, masks, 0.3)
        results.append([output, *torch.autograd.grad((output * weights).sum(), tensors)])
    torch.testing.assert_close(*results)


def test_gradients_are_those_of_finite_differences():
    tensors = inputs(length=3, num_keys=3, width=2)
    assert torch.autograd.gradcheck(lambda *qkv: short_attention(*qkv, causal(3), 0.7), tensors)


def test_values_may_be_wider_than_keys():
    query, key, _ = inputs()
    value = torch.randn(3, 2, 5, 11, dtype=torch.float64, requires_grad=True)
    tensors, results = [query, key, value], []
    for attend in (short_attention, by_torch):
        output = attend(*tensors, causal(5), 0.3)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    torch.testing.assert_close(*results)


def test_a_query_that_sees_nothing_harms_no_other():
    query, key, value = inputs()
    mask = causal(5)
    mask[2] = False
    output = short_attention(query, key, value, mask, 0.3)
    grads = torch.autograd.grad(output[:, [0, 1, 3, 4]].square().sum(), (query, key, value))
    assert all(grad.isfinite().all() for grad in (output, *grads))
    expected = by_torch(query, key, value, causal(5), 0.3)
    torch.testing.assert_close(output[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]])


def test_bf16_errs_by_its_own_rounding_alone():
    """As much as the fused kernel: more in outputs (1.7 times), less for keys and values."""
    wide = inputs(8, 2, length=64, num_keys=64, width=16, dtype=torch.float32)
    rounded = [one.detach().bfloat16().requires_grad_() for one in wide]
    exact = [one.detach().float().requires_grad_() for one in rounded]
    weights = torch.randn(3, 64, 8, 16)

    def results(attend, tensors):
        output = attend(*tensors, causal(64), 0.25)
        grads = torch.autograd.grad((output.float() * weights).sum(), tensors)
        return [one.float() for one in (output, *grads)]

    right = results(by_torch, exact)
    ours, fused = (
        [(one - best).norm() / best.norm() for one, best in zip(found, right, strict=True)]
        for found in (results(short_attention, rounded), results(by_torch, rounded))
    )
    ratios = [one / other for one, other in zip(ours, fused, strict=True)]
    assert all(ratio < bound for ratio, bound in zip(ratios, (1.9, 1.5, 1.1, 1.0), strict=True)), (
        ratios
    )


def test_under_autocast_products_are_in_bf16_and_gradients_in_the_inputs_type():
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = short_attention(*tensors, causal(5), 0.3)
    assert output.dtype == torch.bfloat16
    grads = torch.autograd.grad(output.float().sum(), tensors)
    assert {grad.dtype for grad in grads} == {torch.float32}
    torch.testing.assert_close(
        output.float(), by_torch(*tensors, causal(5), 0.3), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_a_model_takes_it_for_short_rows_in_bf16_and_agrees_with_plain_attention(
    architecture, monkeypatch
):
    calls = []

    def counted(*arguments):
        calls.append(arguments[0].shape[2])
        return short_attention(*arguments)

    monkeypatch.setattr(attention, "short_attention", counted)
    plain, ours = (lively_model(architecture, attn_implementation=name) for name in MODELS)
    for length, is_packed in ((6, False), (6, True), (LONGEST + 1, True)):
        ids = torch.randint(90, (2, length))
        positions = torch.arange(length).expand(2, -1).clone()
        if is_packed:
            positions[:, length // 2 :] -= length // 2
        logits, grads = [], []
        for model in (plain, ours):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits.append(model(ids, position_ids=positions, use_cache=False).logits.float())
            logits[-1].square().mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert bool(calls) == (length <= LONGEST)
        calls.clear()
        for expected, found in (logits, grads):
            assert (expected - found).norm() < 0.03 * expected.norm()
