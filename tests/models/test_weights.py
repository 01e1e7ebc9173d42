import pytest
import torch

from lit_rlhf.models import LoRAConfig, apply_lora
from lit_rlhf.models.weights import effective_weight, weight_versions
from tests.models.examples import lively_model, shake


def step(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), fused=True).step()


def write(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)


def replace(model):
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.clone())


def switch(model):
    model.base_model.disable_adapter_layers()


@pytest.mark.parametrize("change", [step, write, replace, switch])
def test_versions_change_with_the_weights_and_the_adapters(change):
    model = apply_lora(lively_model(), LoRAConfig(rank=2))
    before = list(weight_versions(model))
    assert list(weight_versions(model)) == before
    change(model)
    assert list(weight_versions(model)) != before


def test_a_weight_has_the_adapters_that_are_switched_on():
    model = apply_lora(lively_model(), LoRAConfig(rank=2))
    shake(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    inputs = torch.randn(3, layer.in_features)
    torch.testing.assert_close(inputs @ effective_weight(layer).T, layer(inputs))
    with model.disable_adapter():
        assert torch.equal(effective_weight(layer), layer.get_base_layer().weight)
