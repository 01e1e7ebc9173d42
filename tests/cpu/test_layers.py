import copy

import pytest
import torch

from lit_rlhf.cpu.layers import lighten
from lit_rlhf.models import LoRAConfig
from lit_rlhf.models.backbone import apply_lora, freeze
from tests.models.examples import ARCHITECTURES, lively_model

TOKENS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))


class Saved:
    """Adds up what autograd keeps beside weights."""

    def __init__(self, model):
        self.num_bytes = 0
        self.weights = {parameter.data_ptr() for parameter in model.parameters()}
        self.seen = set()

    def pack(self, tensor):
        if tensor.data_ptr() not in self.weights | self.seen:
            self.num_bytes += tensor.nbytes
            self.seen.add(tensor.data_ptr())
        return tensor


def step(model, precision=None):
    """Return logits, gradients and bytes kept for the backward."""
    saved = Saved(model)
    with (
        torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor),
        torch.autocast("cpu", precision, enabled=precision is not None),
    ):
        logits = model(TOKENS).logits.float()
    (logits.log_softmax(-1)[..., 5].sum() / 10).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads, saved.num_bytes


def pair(architecture, lora=None):
    plain = lively_model(architecture, intermediate_size=96)
    if lora is not None:
        plain = apply_lora(freeze(plain), lora)
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    lean = copy.deepcopy(plain)
    lighten(lean)
    return plain, lean


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_values_and_gradients_are_transformers_own(architecture, lora):
    plain, lean = pair(architecture, lora)
    expected, actual = step(plain), step(lean)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(actual[1][name], grad, rtol=1e-4, atol=1e-5, msg=name)
    # An adapter keeps its own input, too.
    assert actual[2] < (0.75 if lora is None else 0.85) * expected[2]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_under_autocast_they_differ_by_rounding_alone(architecture):
    plain, lean = pair(architecture)
    expected, actual = step(plain, torch.bfloat16), step(lean, torch.bfloat16)
    torch.testing.assert_close(actual[0], expected[0], rtol=0.05, atol=0.05)
    for name, grad in expected[1].items():
        assert (actual[1][name] - grad).norm() <= 0.03 * grad.norm() + 1e-4, name


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_adapters_under_autocast_err_no_more_than_pefts(architecture):
    plain, lean = pair(architecture, LoRAConfig(rank=2))
    exact, exact_grads, _ = step(plain)
    plain.zero_grad()
    expected, actual = step(plain, torch.bfloat16), step(lean, torch.bfloat16)
    errors = [(logits - exact).norm() for logits in (expected[0], actual[0])]
    assert errors[1] < 1.2 * errors[0] < 0.05 * exact.norm()
    for name, grad in exact_grads.items():
        errors = [(grads[name] - grad).norm() for grads in (expected[1], actual[1])]
        assert errors[1] <= 2 * errors[0] + 1e-3 * grad.norm() + 1e-4, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_its_results(architecture):
    plain = lively_model(architecture)
    lean = copy.deepcopy(plain)
    lighten(lean)
    with torch.no_grad():
        torch.testing.assert_close(lean(TOKENS).logits, plain(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_a_copy_computes_with_its_own_weights():
    _, lean = pair("llama")
    other = copy.deepcopy(lean)
    with torch.no_grad():
        before = lean(TOKENS).logits
        for parameter in other.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(lean(TOKENS).logits, before)
        assert (other(TOKENS).logits - before).abs().max() > 1e-2
