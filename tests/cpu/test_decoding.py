import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.backbone import adapter_disabled
from lit_rlhf.models.kv_cache import RowCache
from tests.models.examples import lively_model, random_rows, shake
from tests.support.tiny_models import VOCABULARY_SIZE, llama_config

_TINY = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
CONFIGS = {
    "llama": llama_config(attn_implementation="eager"),
    "llama with biases": llama_config(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=False, attn_implementation="eager"
    ),
    "scaled rotation": llama_config(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
        attn_implementation="eager",
    ),
    "mistral": MistralConfig(**_TINY, sliding_window=20),
    "qwen3": Qwen3Config(**_TINY, head_dim=16),
}
LENGTHS = [5, 2, 7]
NUM_STEPS = 4


def policy_of(name):
    if name == "qwen2":
        return PolicyModel(lively_model("qwen2"))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    shake(model)
    return PolicyModel(model)


def decode(policy, *, fuses, num_columns=16):
    """Extend three prompts by fixed tokens; return the logits of each step."""
    policy.fuses_decoding = fuses
    rows = random_rows(LENGTHS, [NUM_STEPS] * 3)
    lengths, width = torch.tensor(LENGTHS), max(LENGTHS)
    padding = (width - lengths)[:, None]
    positions = (torch.arange(width) - padding).clamp(min=0)
    cache = RowCache(3, num_columns, size=3)
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


@pytest.mark.parametrize("name", [*CONFIGS, "qwen2"])
def test_the_snapshot_decodes_as_the_model_does(name):
    policy = policy_of(name)
    with torch.no_grad():
        fused = decode(policy, fuses=True)
        assert policy._snapshot is not None
        torch.testing.assert_close(fused, decode(policy, fuses=False), rtol=1e-4, atol=1e-4)
        assert policy._snapshot is None


@pytest.mark.parametrize("name", [*CONFIGS, "qwen2"])
def test_under_autocast_it_differs_by_rounding_alone(name):
    policy = policy_of(name)
    with torch.no_grad():
        exact = decode(policy, fuses=False)
        with torch.autocast("cpu", torch.bfloat16):
            fused = decode(policy, fuses=True)
            assert policy._snapshot.dtype == torch.bfloat16
            plain = decode(policy, fuses=False)
    assert fused.dtype == torch.float32
    error, usual = (fused - exact).abs().mean(), (plain - exact).abs().mean()
    assert 0 < error < 1.5 * usual


def test_adapters_are_merged_and_switching_them_is_seen():
    policy = PolicyModel(apply_lora(lively_model(), LoRAConfig(rank=4)))
    shake(policy, seed=2, deviation=0.1)
    with torch.no_grad():
        for _ in range(2):
            adapted = decode(policy, fuses=True)
            torch.testing.assert_close(adapted, decode(policy, fuses=False), rtol=1e-4, atol=1e-4)
            with adapter_disabled(policy.model):
                plain = decode(policy, fuses=True)
                torch.testing.assert_close(plain, decode(policy, fuses=False), rtol=1e-4, atol=1e-4)
            assert (adapted - plain).abs().max() > 0.1


def test_a_snapshot_is_taken_when_weights_have_changed_and_only_then():
    policy = policy_of("llama")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = decode(policy, fuses=True)
        first = policy._snapshot
        assert torch.equal(decode(policy, fuses=True), before)
        assert policy._snapshot is first
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        after = decode(policy, fuses=True)
        assert policy._snapshot is not first
        assert (after - before).abs().max() > 0.1
        torch.testing.assert_close(after, decode(policy, fuses=False), rtol=1e-4, atol=1e-4)


def test_training_gives_the_snapshots_memory_back():
    policy = policy_of("llama")
    with torch.no_grad():
        decode(policy, fuses=True)
        policy(random_rows([2], [3]))
    assert policy._snapshot is not None
    policy(random_rows([2], [3]))
    assert policy._snapshot is None


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_other_architectures_take_the_plain_path(architecture):
    policy = PolicyModel(lively_model(architecture))
    with torch.no_grad():
        decode(policy, fuses=True)
    assert policy._snapshot is None


def test_beyond_a_sliding_window_the_plain_path_knows_the_masks():
    policy = policy_of("mistral")
    with torch.no_grad():
        decode(policy, fuses=True, num_columns=21)
    assert policy._snapshot is None
