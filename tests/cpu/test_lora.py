import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lit_rlhf.cpu import install
from lit_rlhf.cpu.lora import active_adapter, is_plain_lora


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 3, bias=False)

    def forward(self, inputs):
        return self.second(self.first(inputs).tanh())


def adapted(**options):
    """Two layers under an adapter that does something."""
    torch.manual_seed(1)
    options = {"target_modules": ["first", "second"], "init_lora_weights": False, **options}
    return get_peft_model(Two(), LoraConfig(r=2, lora_alpha=6, **options))


def both(model):
    """A model with peft's own forward, and the same one with ours."""
    lean = copy.deepcopy(model)
    install(lean)
    return model, lean


@pytest.fixture
def inputs():
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))


def results(model, inputs):
    """Return outputs, the gradient of the inputs, and those of what is trained."""
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    outputs.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs.detach(), inputs.grad, grads


def assert_alike(model, inputs):
    plain, lean = both(model)
    expected, actual = results(plain, inputs), results(lean, inputs)
    torch.testing.assert_close(actual[:2], expected[:2])
    assert actual[2].keys() == expected[2].keys()
    for name, grad in expected[2].items():
        torch.testing.assert_close(actual[2][name], grad, msg=name)
    return actual


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 6, 5)])
def test_results_and_gradients_are_pefts(shape, inputs):
    _, _, grads = assert_alike(adapted(), inputs.flatten()[: torch.Size(shape).numel()].view(shape))
    assert len(grads) == 4
    assert all(grad.abs().max() > 0.01 for grad in grads.values())


def test_weights_under_the_adapter_may_be_trained_too(inputs):
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _, _, grads = assert_alike(model, inputs)
    assert {name.split(".")[-2] for name in grads} == {"base_layer", "default"}


def test_gradients_against_finite_differences():
    model = adapted().double()
    install(model)
    layer = model.base_model.model.first
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows, *_: layer(rows), (rows, *weights))


def switch_off(model):
    model.base_model.disable_adapter_layers()


def merge(model):
    model.merge_adapter()


def add_another(model):
    second = LoraConfig(target_modules=["first", "second"], r=3, init_lora_weights=False)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize("change", [switch_off, merge, add_another])
def test_what_is_not_one_adapter_is_left_to_peft(change, inputs):
    model = adapted()
    before = model(inputs).detach()
    change(model)
    assert active_adapter(model.base_model.model.first) is None
    outputs, _, _ = assert_alike(model, inputs)
    is_same = torch.allclose(outputs, before, atol=1e-5)
    assert is_same == (change is merge)


def test_an_adapter_is_switched_while_running(inputs):
    plain, lean = both(adapted())
    with plain.disable_adapter(), lean.disable_adapter():
        torch.testing.assert_close(lean(inputs), plain(inputs))
        base = lean(inputs)
    assert (lean(inputs) - base).abs().max() > 0.01
    torch.testing.assert_close(lean(inputs), plain(inputs))


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}]
)
def test_more_than_two_matrices_are_left_to_peft(options):
    layer = adapted(target_modules=["first"], **options).base_model.model.first
    assert is_plain_lora(layer)
    assert active_adapter(layer) is None


def test_other_layers_are_not_plain():
    assert not is_plain_lora(nn.Linear(2, 2))
    embedding = nn.ModuleDict({"first": nn.Embedding(4, 5)})
    model = get_peft_model(embedding, LoraConfig(target_modules=["first"]))
    assert not is_plain_lora(model.base_model.model["first"])


def test_under_autocast_it_differs_by_rounding_alone(inputs):
    plain, lean = both(adapted())
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = results(plain, inputs), results(lean, inputs)
    assert actual[0].dtype == expected[0].dtype == torch.bfloat16
    assert actual[1].dtype == torch.float32
    torch.testing.assert_close(actual[0], expected[0], rtol=0.03, atol=0.1)
    for name, grad in expected[2].items():
        assert actual[2][name].dtype == torch.float32
        assert (actual[2][name] - grad).norm() < 0.03 * grad.norm(), name


def test_fewer_bytes_are_allocated():
    """The low rank is added by the product: no scaled copy as wide as the output."""

    def wide_tensors(model):
        rows = torch.randn(64, 512)
        with torch.profiler.profile(profile_memory=True) as profile:
            model(rows).sum().backward()
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())

    torch.manual_seed(1)
    config = LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    plain, lean = both(get_peft_model(nn.Sequential(nn.Linear(512, 2048)), config))
    assert wide_tensors(lean) < 0.85 * wide_tensors(plain)
