import math

import pytest
import torch

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, ScalarHead, ScalarModel, apply_lora
from tests.models.examples import ARCHITECTURES, lively_model, random_rows, unpadded

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_layout = pytest.mark.parametrize("width", [None, 16, 256])
close = {"rtol": 1e-5, "atol": 1e-5}


def scalar_model(architecture="llama", width=None, **settings):
    torch.manual_seed(3)
    backbone = lively_model(architecture).base_model
    return ScalarModel(backbone, packing_width=width, **settings)


def all_lengths():
    return random_rows([3, 1, 7, 5, 2], [4, 2, 1, 6, 9], num_extra_columns=2, pad_id=3)


def oracle(model, rows):
    """Return `[B, L + 1]`: the head on every state, shifted: column `i` is before token `i`."""
    full = torch.zeros(rows.input_ids.shape[0], rows.input_ids.shape[1] + 1)
    for row, ids in enumerate(unpadded(rows)):
        states = model.backbone(ids, use_cache=False)[0][0]
        head = model.head.linear
        full[row, 1 : ids.shape[1] + 1] = (states @ head.weight.T).squeeze(-1) + (
            0 if head.bias is None else head.bias
        )
    return full


@pytest.mark.parametrize("width", [255, 4095])
def test_weights_start_with_the_deviation_of_the_source(width):
    # 4 standard errors of a deviation estimated from `40 * width` normal numbers.
    weights = torch.cat([ScalarHead(width).linear.weight for _ in range(40)]).detach()
    tolerance = 4 / math.sqrt(2 * weights.numel())
    assert float(weights.std()) * math.sqrt(width + 1) == pytest.approx(1, abs=tolerance)
    assert abs(float(weights.mean())) < 4 / math.sqrt((width + 1) * weights.numel())


def test_the_bias_is_optional_and_starts_at_zero():
    assert ScalarHead(8).linear.bias is None
    head = ScalarHead(8, bias=True, deviation=0.0)
    assert not head.linear.bias.any()
    assert not head.linear.weight.any()


def test_the_head_computes_in_float32_under_autocast():
    head, hidden = ScalarHead(64), torch.randn(5, 64)
    expected = head(hidden)
    torch.testing.assert_close(expected, hidden @ head.linear.weight[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(hidden), expected)
    assert head(hidden.to(torch.bfloat16)).dtype == torch.float32


@each_architecture
@each_layout
def test_scores_are_those_of_each_row_alone(architecture, width):
    model, rows = scalar_model(architecture, width), all_lengths()
    with torch.no_grad():
        expected = oracle(model, rows).gather(1, rows.lengths[:, None])[:, 0]
        torch.testing.assert_close(model(rows), expected, **close)


@each_architecture
@each_layout
def test_token_values_are_those_before_each_response_token(architecture, width):
    model, rows = scalar_model(architecture, width, bias=True), all_lengths()
    with torch.no_grad():
        model.head.linear.bias += 0.7
        values = model.token_values(rows)
        torch.testing.assert_close(
            values, oracle(model, rows)[:, :-1] * rows.response_mask, **close
        )
    assert values.dtype == torch.float32


@each_architecture
@each_layout
def test_gradients_are_those_of_each_row_alone(architecture, width):
    rows = all_lengths()
    score_weights, value_weights = torch.randn(5), torch.randn(rows.input_ids.shape)
    gradients = []
    for forward in ("oracle", "ours"):
        model = scalar_model(architecture, width)
        if forward == "oracle":
            states = oracle(model, rows)
            scores = states.gather(1, rows.lengths[:, None])[:, 0]
            values = states[:, :-1] * rows.response_mask
        else:
            scores, values = model(rows), model.token_values(rows)
        ((scores * score_weights).sum() + (values * value_weights).sum()).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    expected, ours = gradients
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * largest)


@each_layout
def test_the_last_real_token_is_read_although_padding_looks_the_same(width):
    model = scalar_model(width=width)
    eos = 2
    own = torch.tensor([[5, eos, 9, eos], [5, eos, eos, eos], [5, 6, 7, 8]])
    rows = TokenRows(own, torch.tensor([4, 2, 4]), torch.zeros_like(own, dtype=torch.bool))
    other_padding = rows._replace(
        input_ids=torch.tensor([[5, 2, 9, 2], [5, 2, 40, 41], [5, 6, 7, 8]])
    )
    with torch.no_grad():
        scores = model(rows)
        torch.testing.assert_close(scores, model(other_padding), **close)
        expected = oracle(model, rows)
    torch.testing.assert_close(
        scores, torch.stack([expected[0, 4], expected[1, 2], expected[2, 4]]), **close
    )


def test_the_normaliser_shifts_and_scales():
    model = scalar_model()
    raw = torch.tensor([1.0, 3.0, 5.0])
    assert torch.equal(model.normalize(raw), raw)
    model.set_normalizer(3.0, 2.0)
    assert model.normalize(raw).tolist() == [-1.0, 0.0, 1.0]


def test_the_normaliser_travels_with_the_weights_and_scores_stay_raw():
    model, rows = scalar_model(), all_lengths()
    before = model(rows)
    model.set_normalizer(3.0, 2.0)
    assert torch.equal(model(rows), before)
    other = scalar_model()
    other.load_state_dict(model.state_dict())
    assert (float(other.mean), float(other.deviation)) == (3.0, 2.0)


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan])
def test_scores_that_do_not_differ_cannot_be_normalised(deviation):
    model = scalar_model()
    with pytest.raises(ConfigError, match=f"deviation is {deviation}"):
        model.set_normalizer(1.0, deviation)
    assert (float(model.mean), float(model.deviation)) == (0.0, 1.0)


@pytest.mark.parametrize("moments", [(math.nan, 1.0), (0.0, math.inf)])
def test_moments_that_are_no_numbers_are_refused(moments):
    with pytest.raises(ConfigError, match="finite"):
        scalar_model().set_normalizer(*moments)


@each_architecture
def test_an_adapted_backbone_trains_adapters_and_head_alone(architecture):
    rows = all_lengths()
    plain = scalar_model(architecture)
    model = scalar_model(architecture)
    model.backbone = apply_lora(model.backbone, LoRAConfig(rank=2))
    with torch.no_grad():
        assert torch.equal(model(rows), plain(rows))  # starts as the identity
    model(rows).sum().backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {
        name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith("head.")
    }
    assert model.transformers_config is model.backbone.get_base_model().config
