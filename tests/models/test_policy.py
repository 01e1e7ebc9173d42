import pytest
import torch

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.backbone import attention_of
from lit_rlhf.models.fast_paths import take_fast_paths
from lit_rlhf.models.kv_cache import RowCache
from tests.models.examples import ARCHITECTURES, lively_model, random_rows, shake, unpadded

LAYOUTS = {"padded": None, "packed": 16, "packed wide": 256}
each_layout = pytest.mark.parametrize("width", LAYOUTS.values(), ids=LAYOUTS.keys())
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
close = {"rtol": 1e-5, "atol": 1e-5}


def rows_of_all_lengths():
    return random_rows([3, 1, 7, 5, 2], [4, 2, 1, 6, 9], num_extra_columns=2, pad_id=3)


def rows_sharing_prompts():
    """Three responses to one prompt, two to another, one to a third that begins like the first."""
    rows = random_rows([5, 2, 5, 5, 2, 4], [4, 2, 1, 6, 9, 3], num_extra_columns=2, pad_id=3)
    ids = rows.input_ids.clone()
    ids[2, :5] = ids[3, :5] = ids[0, :5]
    ids[4, :2] = ids[1, :2]
    ids[5, :4] = ids[0, :4]
    return rows._replace(input_ids=ids)


BATCHES = {"own prompts": rows_of_all_lengths, "shared prompts": rows_sharing_prompts}
each_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())


def policy_with_critic(architecture, width=None, attention="eager"):
    model = lively_model(architecture, attn_implementation=attention)
    policy = PolicyModel(model, value_head=True, packing_width=width)
    shake(policy.value_head, seed=1)
    return policy


def oracle(policy, rows, temperature=1.0):
    """Return log-probabilities, entropy and values by transformers' own forward, row by row."""
    full = [torch.zeros(rows.input_ids.shape) for _ in range(3)]
    for row, ids in enumerate(unpadded(rows)):
        output = policy.model(ids, output_hidden_states=True, use_cache=False)
        distribution = (output.logits[0] / temperature).log_softmax(-1)
        entropy = -(distribution.exp() * distribution).sum(-1)
        state_values = policy.value_head(output.hidden_states[-1][0])
        for column in rows.response_mask[row].nonzero()[:, 0].tolist():
            token = ids[0, column]
            found = distribution[column - 1, token], entropy[column - 1], state_values[column - 1]
            for tensor, value in zip(full, found, strict=True):
                tensor[row, column] = value
    return full


@each_architecture
@each_layout
@each_batch
def test_scores_are_those_of_transformers_row_by_row(architecture, width, batch):
    policy, rows = policy_with_critic(architecture, width), batch()
    with torch.no_grad():
        ours = policy(rows, with_entropy=True)
        logprobs, entropy, values = oracle(policy, rows)
    torch.testing.assert_close(ours.logprobs, logprobs, **close)
    torch.testing.assert_close(ours.entropy, entropy, **close)
    torch.testing.assert_close(ours.values, values, **close)
    assert ours.logprobs.dtype == ours.entropy.dtype == ours.values.dtype == torch.float32


@each_architecture
@each_layout
@each_batch
def test_gradients_are_those_of_transformers_row_by_row(architecture, width, batch):
    rows = batch()
    weights = torch.randn(3, *rows.input_ids.shape)
    gradients = []
    for forward in (oracle, lambda policy, rows: policy(rows, with_entropy=True)):
        policy = policy_with_critic(architecture, width)
        sum(
            (weight * tensor).sum()
            for weight, tensor in zip(weights, forward(policy, rows), strict=True)
        ).backward()
        gradients.append({name: value.grad for name, value in policy.named_parameters()})
    expected, ours = gradients
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])  # Gemma 2 has eager alone
@pytest.mark.parametrize("attention", ["sdpa", "sdpa_short_rows"])
def test_a_shared_prompt_is_masked_for_every_attention(architecture, attention):
    rows = rows_sharing_prompts()
    policy = policy_with_critic(architecture, 256, "sdpa")
    if attention != "sdpa":
        take_fast_paths(policy, torch.device("cpu"))
    assert attention_of(policy.model) == attention
    with torch.no_grad():
        for ours, expected in zip(
            policy(rows, with_entropy=True), oracle(policy, rows), strict=True
        ):
            torch.testing.assert_close(ours, expected, **close)


@each_layout
def test_results_do_not_depend_on_the_padding(width):
    policy = PolicyModel(lively_model(), packing_width=width)
    lengths = [3, 1, 7], [4, 2, 1]
    narrow = random_rows(*lengths)
    wide = random_rows(*lengths, num_extra_columns=9, pad_id=2)
    with torch.no_grad():
        torch.testing.assert_close(
            policy(wide).logprobs[:, : narrow.input_ids.shape[1]], policy(narrow).logprobs, **close
        )
        assert not policy(wide).logprobs[:, narrow.input_ids.shape[1] :].any()


@each_layout
def test_results_do_not_depend_on_the_other_rows(width):
    policy = PolicyModel(lively_model(), packing_width=width)
    rows = rows_of_all_lengths()
    order = torch.tensor([4, 2, 0])
    with torch.no_grad():
        torch.testing.assert_close(
            policy(rows.select(order)).logprobs, policy(rows).logprobs[order], **close
        )


@each_layout
def test_only_marked_tokens_are_scored(width):
    policy = PolicyModel(lively_model(), value_head=True, packing_width=width)
    rows = random_rows([2, 4], [6, 3])
    scattered = rows.response_mask & (torch.arange(8) % 2 == 0)  # as in a chat of several turns
    with torch.no_grad():
        all_scores = policy(rows, with_entropy=True)
        some_scores = policy(rows._replace(response_mask=scattered), with_entropy=True)
    for everything, some in zip(all_scores, some_scores, strict=True):
        torch.testing.assert_close(some, everything * scattered, **close)


def test_no_response_token_at_all():
    policy = PolicyModel(lively_model(), value_head=True)
    rows = random_rows([2, 4], [0, 0])
    for tensor in policy(rows, with_entropy=True):
        assert torch.equal(tensor, torch.zeros(2, 4))


def test_temperature_divides_the_logits():
    policy, rows = policy_with_critic("llama"), random_rows([2, 4], [5, 3])
    with torch.no_grad():
        ours = policy(rows, temperature=0.7, with_entropy=True)
        logprobs, entropy, _ = oracle(policy, rows, temperature=0.7)
    torch.testing.assert_close(ours.logprobs, logprobs, **close)
    torch.testing.assert_close(ours.entropy, entropy, **close)


def test_a_value_is_read_before_its_token():
    policy = policy_with_critic("llama")
    rows = random_rows([3], [4])
    changed_ids = rows.input_ids.clone()
    changed_ids[0, 4] += 1
    with torch.no_grad():
        before = policy(rows).values[0]
        after = policy(rows._replace(input_ids=changed_ids)).values[0]
    assert torch.equal(after[:5], before[:5])
    assert (after[5:] - before[5:]).abs().min() > 1e-3


def test_the_value_head_starts_at_zero_and_is_only_there_when_asked_for():
    rows = random_rows([3], [4])
    assert PolicyModel(lively_model())(rows).values is None
    assert PolicyModel(lively_model())(rows).entropy is None
    with_head = PolicyModel(lively_model(), value_head=True)
    assert not with_head(rows).values.any()
    assert set(with_head.value_head.state_dict()) == {"linear.weight", "linear.bias"}


@each_architecture
@each_layout
def test_without_its_adapter_the_policy_is_the_base_model(architecture, width):
    rows = rows_of_all_lengths()
    base = PolicyModel(lively_model(architecture), packing_width=width)
    adapted = apply_lora(lively_model(architecture), LoRAConfig(rank=4))
    policy = PolicyModel(adapted, packing_width=width)
    with torch.no_grad():
        assert torch.equal(policy(rows).logprobs, base(rows).logprobs)  # starts as the identity
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
        assert not torch.allclose(policy(rows).logprobs, base(rows).logprobs, atol=1e-2)
        reference = policy(rows, with_adapter=False).logprobs
    assert torch.equal(reference, base(rows).logprobs)


def test_adapters_and_value_head_alone_train():
    adapted = apply_lora(lively_model(), LoRAConfig(rank=4))
    policy = PolicyModel(adapted, value_head=True)
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    assert trained == {
        name
        for name, _ in policy.named_parameters()
        if ".lora_" in name or name.startswith("value_head.")
    }
    scores = policy(random_rows([2], [3]))
    (scores.logprobs.sum() + scores.values.sum()).backward()
    assert {name for name, value in policy.named_parameters() if value.grad is not None} == trained


def test_no_adapter_to_switch_off():
    with pytest.raises(ConfigError, match="no adapter"):
        PolicyModel(lively_model())(random_rows([2], [3]), with_adapter=False)


@each_architecture
def test_next_logits_extend_a_cache_as_transformers_would_read_the_whole_row(architecture):
    policy = PolicyModel(lively_model(architecture))
    rows = random_rows([9], [0])
    expected = policy.model(rows.input_ids).logits[0].detach()
    cache = RowCache(2, 12, size=1)
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
        with torch.no_grad():
            logits = policy.next_logits(
                rows.input_ids[:, start:end],
                torch.arange(start, end)[None],
                torch.ones(1, end, dtype=torch.bool),
                cache,
            )
        cache.advance(end - start)
        torch.testing.assert_close(logits[0], expected[end - 1], rtol=1e-4, atol=1e-5)


def test_logprobs_stay_in_float32_under_autocast():
    policy, rows = PolicyModel(lively_model(), value_head=True), random_rows([3, 5], [4, 6])
    with torch.no_grad():
        exact = policy(rows).logprobs
        with torch.autocast("cpu", torch.bfloat16):
            scores = policy(rows, with_entropy=True)
    assert {tensor.dtype for tensor in scores} == {torch.float32}
    assert 0 < (scores.logprobs - exact).abs().max() < 0.3


def test_settings_are_at_hand():
    model = lively_model()
    for policy in (PolicyModel(model), PolicyModel(apply_lora(model, LoRAConfig()))):
        assert policy.transformers_config is model.config
        assert policy.trunk is model.model


def test_rows_are_left_as_they_were():
    rows = random_rows([3, 5], [4, 6])
    before = TokenRows(*(tensor.clone() for tensor in rows))
    PolicyModel(lively_model())(rows)
    assert all(torch.equal(*pair) for pair in zip(rows, before, strict=True))
