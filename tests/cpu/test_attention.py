import pytest
import torch
from torch.nn import functional

from lit_rlhf.cpu.attention import ATTENTION_NAME, decode_attention
from tests.models.examples import lively_model


def inputs(heads, kv_heads, *, batch=3, cached=7, width=8, dtype=torch.float32):
    return (
        torch.randn(batch, heads, 1, width).to(dtype),
        torch.randn(batch, kv_heads, cached, width).to(dtype),
        torch.randn(batch, kv_heads, cached, width).to(dtype),
    )


def expected_attention(query, key, value, attention_mask, scaling):
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2)  # [B, heads, 1, D] -> [B, 1, heads, D]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("scaling", [8**-0.5, 0.25])
def test_decoding_agrees_with_torch(heads, kv_heads, scaling):
    tensors = inputs(heads, kv_heads)
    readable = torch.rand(3, 1, 1, 7) < 0.5
    readable[..., -1] = True  # the new token itself
    for attention_mask in (None, readable):
        torch.testing.assert_close(
            decode_attention(*tensors, attention_mask, scaling),
            expected_attention(*tensors, attention_mask, scaling),
        )


def test_what_the_mask_hides_is_not_read():
    query, key, value = inputs(4, 2)
    attention_mask = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    attention_mask[1, :, :, :3] = False
    before = decode_attention(query, key, value, attention_mask, 0.3)
    key[1, :, :3], value[1, :, :3] = 100.0, -100.0
    assert torch.equal(before, decode_attention(query, key, value, attention_mask, 0.3))


def test_half_precision_stays_in_its_dtype():
    tensors = inputs(4, 2, dtype=torch.bfloat16)
    output = decode_attention(*tensors, None, 0.3)
    assert output.dtype == torch.bfloat16
    expected = expected_attention(*(tensor.float() for tensor in tensors), None, 0.3)
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_a_cached_step_agrees_with_plain_attention(architecture):
    ids = torch.randint(90, (2, 6))
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)

    def last_logits(name):
        model = lively_model(architecture, attn_implementation=name)
        with torch.no_grad():
            prompt = model(
                ids[:, :5], attention_mask=attention_mask[:, :5], position_ids=positions[:, :5]
            )
            return model(
                ids[:, 5:],
                attention_mask=attention_mask,
                position_ids=positions[:, 5:],
                past_key_values=prompt.past_key_values,
            ).logits

    torch.testing.assert_close(
        last_logits(ATTENTION_NAME), last_logits("eager"), rtol=1e-4, atol=1e-4
    )


def test_rows_of_one_token_have_the_same_gradients():
    ids = torch.tensor([[5], [9]])
    gradients = []
    for name in (ATTENTION_NAME, "eager"):
        model = lively_model(attn_implementation=name)
        model(ids).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)
