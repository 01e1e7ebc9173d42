import pytest
import torch

from lit_rlhf.models import LoRAConfig, PolicyModel, ScalarModel, apply_lora, fast_paths, packing
from lit_rlhf.models import backbone as backbone_module
from lit_rlhf.models.backbone import attention_of, trunk_of, without_adapter_wrapper
from lit_rlhf.models.fast_paths import take_fast_paths
from lit_rlhf.models.sequence_attention import ATTENTION_NAME, Sequences, attend, kernel_works
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from tests.models.architecture_table import tiny
from tests.models.examples import lively_model, random_rows

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
# Three rows of one prompt, and two of prompts of their own.
ROWS = random_rows([6, 6, 6, 9, 2], [3, 8, 1, 4, 5])
ROWS.input_ids[1:3, :6] = ROWS.input_ids[0, :6]


@pytest.fixture
def gpu(monkeypatch):
    """Let a CPU take the path of a GPU, with each sequence computed by itself."""
    monkeypatch.setattr(fast_paths, "kernel_works", lambda *_: True)

    def by_sequence(trunk, device):
        return attention_of(without_adapter_wrapper(trunk)) == ATTENTION_NAME

    monkeypatch.setattr(backbone_module, "computes_by_sequence", by_sequence)


def outcome(model, rows):
    """Return log-probabilities and the gradients of all weights."""
    scores = model(rows)
    numbers = scores.logprobs if scores.values is None else scores.logprobs + scores.values
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return numbers, torch.autograd.grad(numbers.sum(), weights)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral"])
def test_rows_in_one_are_what_they_are_alone_and_so_are_gradients(name, gpu):
    expected, expected_gradients = outcome(PolicyModel(tiny(name), packing_width=None), ROWS)
    policy = PolicyModel(tiny(name))
    before = attention_of(policy.model)
    take_fast_paths(policy, CUDA)
    try:
        assert attention_of(policy.model) == ATTENTION_NAME
        found, gradients = outcome(policy, ROWS)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    finally:
        policy.model.set_attn_implementation(before)


def test_with_checkpointing_adapters_and_a_head_the_rows_are_the_same(gpu):
    lora = apply_lora(lively_model(attn_implementation="sdpa"), LoRAConfig())
    plain = PolicyModel(lora, packing_width=None, value_head=True).train()
    expected, expected_gradients = outcome(plain, ROWS)
    policy = PolicyModel(lora, value_head=True).train()
    policy.value_head = plain.value_head
    take_fast_paths(policy, CUDA)
    checkpoint_activations(policy)
    found, gradients = outcome(policy, ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_reward_model_scores_rows_in_one_as_alone(gpu):
    trunk = trunk_of(lively_model(attn_implementation="sdpa"))
    expected = ScalarModel(trunk, packing_width=None)
    model = ScalarModel(trunk)
    model.head = expected.head
    take_fast_paths(model, CUDA)
    torch.testing.assert_close(model(ROWS), expected(ROWS), rtol=1e-4, atol=1e-5)


def test_an_architecture_that_hands_nothing_on_keeps_its_mask(gpu, monkeypatch, caplog):
    policy = PolicyModel(lively_model(attn_implementation="sdpa"))
    attention = type(policy.model.model.layers[0].self_attn)
    forward = attention.forward

    def without(self, *args, **kwargs):
        kwargs.pop("sequences", None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", without)
    monkeypatch.setattr("lit_rlhf.models.paths._sequences", {})
    take_fast_paths(policy, CUDA)
    assert attention_of(policy.model) == "sdpa"
    assert "under masks" in caplog.text


def test_on_another_device_or_without_packing_nothing_changes():
    for policy, device in (
        (PolicyModel(lively_model(attn_implementation="sdpa")), torch.device("mps")),
        (PolicyModel(lively_model(attn_implementation="sdpa"), packing_width=None), CUDA),
        (PolicyModel(lively_model()), CUDA),  # eager
    ):
        before = attention_of(policy.model)
        take_fast_paths(policy, device)
        assert attention_of(policy.model) == before


def test_a_shared_prompt_is_computed_once_and_seen_by_all_of_its_responses():
    packed, sequences = packing.lay_end_to_end(
        ROWS.input_ids, ROWS.lengths, torch.tensor([6, 6, 6, 9, 2])
    )
    assert packed.input_ids.shape == (1, 6 + 3 + 8 + 1 + 13 + 7)
    assert packed.attention_mask is None
    assert sequences.query_starts.tolist() == [0, 6, 9, 17, 18, 31, 38]
    assert sequences.key_starts.diff().tolist() == [6, 9, 14, 7, 13, 7]
    assert sequences.keys[6:15].tolist() == list(range(9))
    assert sequences.keys[15:29].tolist() == [*range(6), *range(9, 17)]
    assert (sequences.longest_query, sequences.longest_key) == (13, 14)


def test_torch_takes_what_its_kernel_is_given():
    """Names, types and shapes, which torch checks on tensors without numbers."""
    query, key = torch.empty(10, 4, 16, device="meta"), torch.empty(14, 2, 16, device="meta")
    query, key = (one.bfloat16().requires_grad_() for one in (query, key))
    starts = [torch.tensor(one, dtype=torch.int32, device="meta") for one in ([0, 4], [0, 4])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_rlhf.models.sequence_attention._KERNEL_DEVICES", ("meta",))
        keys = torch.empty(14, dtype=torch.long, device="meta")
        output = attend(query, key, key, Sequences(*starts, keys, 6, 10), scaling=0.2, window=5)
    assert (output.shape, output.dtype) == ((10, 4, 16), torch.bfloat16)
    assert torch.autograd.grad(output.sum(), key)[0].shape == key.shape


def test_the_kernel_is_tried_before_it_is_taken(monkeypatch):
    assert kernel_works(CPU, 4, 2, 16)  # there is none: both sides are computed alike

    def fail(*args, **options):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr("lit_rlhf.models.sequence_attention._one_by_one", fail)
    assert not kernel_works(CPU, 4, 2, 16)
