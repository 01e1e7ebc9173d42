import pytest
import torch
from torch import nn

from lit_rlhf.batches import PromptBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel
from lit_rlhf.models.backbone import apply_lora, transformer_layers
from lit_rlhf.models.freezing import freeze
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from lit_rlhf.rollout import Sampling, TorchGenerator
from tests.models.examples import lively_model, random_rows

# As `load_causal_lm` sets them: what is recomputed must not draw again.
NO_DROPOUT = {"gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}
ROWS = random_rows([6, 3, 6], [9, 12, 4])


def build(architecture, lora, *, checkpointed, packing_width=16):
    torch.manual_seed(1)
    model = lively_model(
        architecture, attn_implementation="sdpa", **NO_DROPOUT.get(architecture, {})
    )
    if lora:
        model = apply_lora(freeze(model), LoRAConfig(rank=2))
    policy = PolicyModel(model, value_head=True, packing_width=packing_width).train()
    if checkpointed:
        checkpoint_activations(policy)
    return policy


def step(policy):
    """Return loss, gradients, and the bytes that autograd keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = policy(ROWS)
        loss = scores.logprobs.sum() + scores.values.square().sum()
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    num_bytes = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach(), gradients, num_bytes


@pytest.mark.parametrize("packing_width", [16, None])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_is_the_same_to_the_last_bit_and_keeps_less(architecture, lora, packing_width):
    options = {"packing_width": packing_width}
    loss, gradients, num_bytes = step(build(architecture, lora, checkpointed=False, **options))
    again, others, fewer_bytes = step(build(architecture, lora, checkpointed=True, **options))
    assert torch.equal(again, loss)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert any(value.abs().sum() > 0 for name, value in gradients.items() if "0" in name)
    assert fewer_bytes < 0.6 * num_bytes


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_run_twice_with_gradients_and_once_without(architecture):
    policy = build(architecture, lora=False, checkpointed=True)
    calls = []
    for layer in transformer_layers(policy):
        norms = [one for one in layer.modules() if type(one).__name__.endswith("Norm")]
        norms[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        policy(ROWS)
    assert len(calls) == 2
    calls.clear()
    policy(ROWS).logprobs.sum().backward()
    assert len(calls) == 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sampling_in_training_mode_keeps_its_cache(architecture, caplog):
    samples = []
    for checkpointed in (False, True):
        policy = build(architecture, lora=False, checkpointed=checkpointed)
        samples.append(generate(policy))
    assert samples[0] == samples[1]
    assert not caplog.records


def generate(policy):
    rows = random_rows([4, 1, 3], [0, 0, 0])
    prompts = PromptBatch(rows.input_ids, rows.lengths, torch.arange(3), [""] * 3, [{}] * 3)
    drawn = TorchGenerator()(policy, prompts, Sampling(max_new_tokens=8), stop_ids=[95], seed=1)
    return drawn.tokens.tolist(), drawn.logprobs.tolist()


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"Linear has no list of layers.*activation_checkpoint"):
        checkpoint_activations(nn.Linear(2, 2))
