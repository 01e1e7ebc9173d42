import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora, freeze, load_causal_lm
from lit_rlhf.models.backbone import (
    adapter_disabled,
    hidden_states,
    vocabulary_of,
    without_adapter_wrapper,
    zero_dropout,
)
from lit_rlhf.models.kv_cache import RowCache
from tests.models.examples import ARCHITECTURES, lively_model, random_rows, shake, unpadded
from tests.support.tiny_models import gemma2_config

_TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "attn_implementation": "eager",
}
EXTRAS = {
    "softcap": gemma2_config(final_logit_softcapping=2.0, attn_implementation="eager"),
    "factor": CohereConfig(**_TINY, num_key_value_heads=2, logit_scale=0.3),
    "divisor": GraniteConfig(**_TINY, num_key_value_heads=2, logits_scaling=0.4),
    "bias": PhiConfig(**_TINY),
}
each_extra = pytest.mark.parametrize("config", EXTRAS.values(), ids=EXTRAS.keys())


def shaken(config):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model)
    return model


@each_extra
def test_logits_agree_with_the_library(config):
    model = shaken(config)
    policy = PolicyModel(model)
    ids = torch.randint(90, (3, 6))
    positions = torch.arange(6).expand(3, 6)
    readable = torch.ones(3, 6, dtype=torch.bool)
    with torch.no_grad():
        ours = policy.next_logits(ids, positions, readable, RowCache(3, 6, size=3))
        torch.testing.assert_close(ours, model(ids).logits[:, -1], rtol=1e-4, atol=1e-5)


@each_extra
def test_logprobs_agree_with_the_library(config):
    model = shaken(config)
    rows = random_rows([2, 3], [4, 2])
    with torch.no_grad():
        ours = PolicyModel(model)(rows).logprobs
        for row, ids in enumerate(unpadded(rows)):
            expected = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            counts = rows.response_mask[row, 1 : ids.shape[1]]
            torch.testing.assert_close(
                ours[row, 1 : ids.shape[1]][counts], expected[counts], rtol=1e-4, atol=1e-5
            )


def test_plain_vocabulary():
    vocabulary = vocabulary_of(lively_model())
    assert (vocabulary.bias, vocabulary.scale, vocabulary.softcap) == (None, 1.0, None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("width", [None, 12])
def test_hidden_states_are_those_of_each_row_alone(architecture, width):
    trunk = lively_model(architecture).base_model
    rows = random_rows([3, 6, 1], [4, 1, 3])
    with torch.no_grad():
        hidden, places = hidden_states(trunk, rows, width)
        for row, ids in enumerate(unpadded(rows)):
            own = hidden[places[row, : ids.shape[1]]]
            torch.testing.assert_close(own, trunk(ids)[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_adapters_train_and_no_layer_but_the_output_lacks_one(architecture):
    model = lively_model(architecture)
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and name != "lm_head"
    }
    adapted = apply_lora(model, LoRAConfig(rank=4))
    trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
    adapters = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained}
    assert all(".lora_" in name for name in trained)
    assert adapters == linear


def test_rank_and_alpha_scale_the_adapter():
    adapted = apply_lora(lively_model(), LoRAConfig(rank=4, alpha=8.0, target_modules=["q_proj"]))
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 2
    assert all(layer.scaling["default"] == 2.0 for layer in layers)
    assert all(layer.lora_A["default"].weight.shape == (4, 32) for layer in layers)


def test_adapter_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        LoRAConfig(rank=0)
    with pytest.raises(ConfigError, match="target_modules"):
        apply_lora(lively_model(), LoRAConfig(target_modules=["no_such_layer"]))
    # The vocabulary is read as one matrix, which an adapter beside it would not reach.
    with pytest.raises(ConfigError, match=r"target_modules.*output"):
        apply_lora(lively_model(tie_word_embeddings=False), LoRAConfig(target_modules=["lm_head"]))


def test_the_adapter_is_off_within_the_block_alone():
    ids = torch.randint(90, (1, 5))
    model = lively_model()
    with torch.no_grad():
        base = model(ids).logits
        adapted = apply_lora(model, LoRAConfig(rank=2))
        shake(nn.ModuleList(m for m in adapted.modules() if hasattr(m, "lora_A")))
        trained = adapted(ids).logits
        with adapter_disabled(adapted):
            off = adapted(ids).logits
        assert not torch.allclose(trained, base)
        assert torch.equal(adapted(ids).logits, trained)
    assert off.shape == base.shape


def test_the_wrapper_comes_off():
    model = lively_model()
    assert without_adapter_wrapper(model) is model
    assert without_adapter_wrapper(apply_lora(model, LoRAConfig())) is model


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(resid_pdrop=0.3, embd_pdrop=0.2, attn_pdrop=0.1, summary_first_dropout=0.4),
        LlamaConfig(attention_dropout=0.3),
        BertConfig(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3),
    ],
    ids=["gpt2", "llama", "bert"],
)
def test_every_dropout_rate_becomes_zero(config):
    others = {name: value for name, value in config.to_dict().items() if "drop" not in name}
    zero_dropout(config)
    after = config.to_dict()
    assert {name: after[name] for name in others} == others
    rates = [value for name, value in after.items() if "drop" in name and value is not None]
    assert rates
    assert not any(rates)


def test_freezing_stops_gradients_and_training_mode():
    model = freeze(lively_model().train())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("is_tied", [True, False])
def test_frozen_linear_layers_may_be_smaller_but_embeddings_stay(is_tied):
    model = freeze(lively_model(tie_word_embeddings=is_tied), torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.float32
    output = model.get_output_embeddings().weight
    assert output.dtype == (torch.float32 if is_tied else torch.bfloat16)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's mappings")
def test_a_frozen_model_in_bf16_lets_go_of_the_file_it_was_read_from(policy_folders):
    folder = policy_folders()
    model = load_causal_lm(str(folder))
    assert str(folder) in Path("/proc/self/maps").read_text()  # or there is nothing to let go of
    freeze(model, torch.bfloat16)
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_frozen_layers_in_bf16_give_what_autocast_gives():
    ids = torch.randint(90, (2, 6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = lively_model()(ids).logits
        assert torch.equal(freeze(lively_model(), torch.bfloat16)(ids).logits, expected)
