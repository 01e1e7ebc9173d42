import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.models import LoRAConfig, freeze, load_causal_lm
from lit_rlhf.models.handover import NORMALIZER_KEY
from lit_rlhf.modules.building import (
    build_critic,
    build_policy,
    build_reference,
    build_reward_model,
    load_frozen,
)
from tests.models.examples import lively_model, random_rows, shake
from tests.support.tiny_models import CONFIGS, llama_config
from tests.support.tokenizer import save_tiny_tokenizer

PLAIN = {"frozen_dtype": None, "packing_width": None}


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_policy_trains_all_of_its_weights_in_float32(policy):
    model = build_policy(policy, None, frozen_dtype=torch.bfloat16, packing_width=None)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.value_head is None


def test_with_lora_only_adapters_and_the_value_head_train(policy):
    model = build_policy(
        policy,
        LoRAConfig(rank=2),
        frozen_dtype=torch.bfloat16,
        packing_width=None,
        value_head=True,
    )
    names = trained(model)
    assert {"value_head.linear.weight", "value_head.linear.bias"} < names
    assert all("lora_" in name for name in names if not name.startswith("value_head."))
    by_name = dict(model.named_parameters())
    assert all(by_name[name].dtype == torch.float32 for name in names)
    frozen = {name: value.dtype for name, value in by_name.items() if name not in names}
    # Linear layers as autocast would cast them; the embedding is the output, too, and stays.
    for name, dtype in frozen.items():
        is_linear = "_proj" in name
        assert dtype == (torch.bfloat16 if is_linear else torch.float32), name


def test_a_reference_is_frozen(policy):
    model = build_reference(policy, frozen_dtype=torch.bfloat16, packing_width=None)
    assert not trained(model)
    assert not model.training


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_a_reward_model_trains_its_head(policy, lora):
    model = build_reward_model(policy, lora, **PLAIN)
    assert "head.linear.weight" in trained(model)
    assert lora is None or all(
        "lora_" in name for name in trained(model) if not name.startswith("head.")
    )


@pytest.fixture
def classifier(tmp_path):
    config = llama_config(num_labels=1, **{NORMALIZER_KEY: {"mean": 0.3, "deviation": 2.5}})
    model = AutoModelForSequenceClassification.from_config(config)
    shake(model)
    model.save_pretrained(tmp_path)
    save_tiny_tokenizer(tmp_path)
    return model, str(tmp_path)


def test_a_critic_starts_as_the_normalised_reward_model(classifier):
    """The value before the last token is what the reward model says of the text so far."""
    plain, folder = classifier
    critic = build_critic(folder, packing_width=None)
    rows = random_rows([3, 5], [4, 2])
    values = critic.token_values(rows)
    for row, (length, num_prompt) in enumerate([(7, 3), (7, 5)]):
        hidden = plain.model(rows.input_ids[row : row + 1, :length]).last_hidden_state
        scores = (plain.score(hidden)[0, :, 0] - 0.3) / 2.5
        torch.testing.assert_close(
            values[row, num_prompt:length], scores[num_prompt - 1 : length - 1], atol=1e-5, rtol=0
        )
    assert trained(critic) == {name for name, _ in critic.named_parameters()}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_frozen_model_read_in_16_bits_is_the_one_read_in_float32(tmp_path, architecture, stored):
    lively_model(architecture).to(stored).save_pretrained(tmp_path)
    expected = freeze(load_causal_lm(str(tmp_path)), torch.bfloat16).state_dict()
    found = load_frozen(load_causal_lm, str(tmp_path), torch.bfloat16).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_a_frozen_model_comes_to_a_device_after_it_was_made_small(policy):
    """As under Lightning, which makes the GPU torch's default device while models are built."""

    def load(source, **options):
        model = load_causal_lm(source, **options)
        devices.update(parameter.device.type for parameter in model.parameters())
        return model

    devices = set()
    with torch.device("meta"):
        model = load_frozen(load, policy, torch.bfloat16)
    assert devices == {"cpu"}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
