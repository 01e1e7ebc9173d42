import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lit_rlhf.cpu import install
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.backbone import adapter_disabled
from lit_rlhf.models.kv_cache import RowCache
from tests.models.examples import ARCHITECTURES, lively_model, random_rows, shake

LENGTHS = [5, 2, 7]
NUM_STEPS = 4
close = {"rtol": 1e-4, "atol": 1e-4}


def pair(architecture="llama", lora=None):
    """A policy, and the same one with packed layers."""
    model = lively_model(architecture)
    plain = PolicyModel(model if lora is None else apply_lora(model, lora))
    shake(plain, seed=2, deviation=0.1)
    packed = copy.deepcopy(plain)
    install(packed)
    return plain, packed


def copies_of(policy):
    """Return the copies that the policy's layers share."""
    output = policy.model.get_output_embeddings()
    return output.forward.func.__self__.copies


def decode(policy):
    """Extend three prompts by fixed tokens; return the logits of each step."""
    rows = random_rows(LENGTHS, [NUM_STEPS] * 3)
    lengths, width = torch.tensor(LENGTHS), max(LENGTHS)
    padding = (width - lengths)[:, None]
    positions = (torch.arange(width) - padding).clamp(min=0)
    cache = RowCache(3, 16, size=3)
    readable = torch.arange(width) >= padding
    prompts = rows.input_ids.gather(1, positions)
    logits = [policy.next_logits(prompts, positions, readable, cache)]
    cache.advance(width)
    for step in range(NUM_STEPS):
        cached = lengths + step
        tokens = rows.input_ids.gather(1, cached[:, None])
        logits.append(policy.next_logits(tokens, cached[:, None], cache.readable(cached), cache))
        cache.advance(1)
    return torch.stack(logits)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_layers_decode_as_the_model_does(architecture, lora):
    plain, packed = pair(architecture, lora)
    with torch.no_grad():
        torch.testing.assert_close(decode(packed), decode(plain), **close)
    if lora is None:
        assert not copies_of(packed)  # float32 weights serve as they are


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_under_autocast_they_differ_by_rounding_alone(architecture):
    plain, packed = pair(architecture, LoRAConfig(rank=4))
    with torch.no_grad():
        exact = decode(plain)
        with torch.autocast("cpu", torch.bfloat16):
            ours, usual = decode(packed), decode(plain)
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().mean() < 1.5 * (usual - exact).abs().mean()


def test_adapters_are_merged_and_switching_them_is_seen():
    plain, packed = pair(lora=LoRAConfig(rank=4))
    with torch.no_grad():
        for _ in range(2):
            adapted = decode(packed)
            torch.testing.assert_close(adapted, decode(plain), **close)
            with adapter_disabled(plain.model), adapter_disabled(packed.model):
                base = decode(packed)
                torch.testing.assert_close(base, decode(plain), **close)
            assert (adapted - base).abs().max() > 0.1


def test_a_layer_is_packed_when_its_weights_have_changed_and_only_then():
    _, packed = pair(lora=LoRAConfig(rank=4))
    optimizer = torch.optim.AdamW(packed.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = decode(packed)
        first = dict(copies_of(packed))
        assert torch.equal(decode(packed), before)
        assert copies_of(packed) == first
    for parameter in packed.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    plain, _ = pair(lora=LoRAConfig(rank=4))
    plain.load_state_dict(packed.state_dict())
    with torch.no_grad():
        after = decode(packed)
        torch.testing.assert_close(after, decode(plain), **close)
    assert (after - before).abs().max() > 0.1


def test_scoring_takes_the_plain_products():
    """PPO's first ratio is exactly one: with and without gradients a row has the same numbers."""
    _, packed = pair(lora=LoRAConfig(rank=4))
    rows = random_rows(LENGTHS, [NUM_STEPS] * 3)
    with torch.no_grad():
        scored = packed(rows).logprobs
    assert not copies_of(packed)
    assert torch.equal(packed(rows).logprobs, scored)


def test_training_gives_the_memory_back():
    _, packed = pair(lora=LoRAConfig(rank=4))
    rows = random_rows([2], [3])
    with torch.no_grad():
        decode(packed)
        packed(rows)
    assert copies_of(packed)
    packed(rows)
    assert not copies_of(packed)


def test_a_copy_decodes_with_its_own_weights():
    _, packed = pair(lora=LoRAConfig(rank=4))
    with torch.no_grad():
        before = decode(packed)
        other = copy.deepcopy(packed)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert (decode(other) - before).abs().max() > 0.1
        torch.testing.assert_close(decode(packed), before)


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_of_more_than_two_matrices_is_left_to_peft(merged):
    """A layer under DoRA is no product with one matrix, until it is merged."""
    plain = lively_model()
    adapted = get_peft_model(plain, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    shake(adapted, seed=2, deviation=0.1)
    if merged:
        adapted.merge_adapter()
    packed = PolicyModel(copy.deepcopy(adapted))
    install(packed)
    with torch.no_grad():
        torch.testing.assert_close(decode(packed), decode(PolicyModel(adapted)), **close)
