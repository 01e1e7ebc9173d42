import logging

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, PolicyModel, ScalarModel, apply_lora, freeze
from lit_rlhf.models import paths as paths_module
from lit_rlhf.models.backbone import trunk_of
from lit_rlhf.models.paths import paths_of, trunk_paths_of
from lit_rlhf.models.probe import probe_rows
from tests.models.architecture_table import tiny
from tests.models.examples import lively_model


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """Forget what other tests measured."""
    monkeypatch.setattr(paths_module, "_paths", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lfm2", "granitemoehybrid", "falcon_h1", "qwen3_next", "opt"])
def test_rows_that_leak_into_each_other_are_padded(name, dtype):
    """In bf16, too, where the leak of a hybrid could pass for rounding."""
    model = tiny(name)
    before = {key: value.clone() for key, value in model.to(dtype).state_dict().items()}
    try:
        policy = PolicyModel(model)
        assert policy.packing_width is None
        assert ScalarModel(trunk_of(model)).packing_width is None
        for key, value in model.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])
    finally:
        model.float()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_rounding_is_no_leak(name):
    model = tiny(name).to(torch.bfloat16)
    try:
        assert paths_of(model)[0]
        assert paths_of(model).decoding == "own"
        assert trunk_paths_of(trunk_of(model)).packs
    finally:
        model.float()


def test_a_model_is_never_whole_in_float32_while_it_is_measured():
    model = lively_model().bfloat16()
    layers = model.model.layers
    types = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(
            lambda *_: types.append([one.mlp.up_proj.weight.dtype for one in layers])
        )
    paths_of(model)
    halves = [dtypes.count(torch.bfloat16) for dtypes in types]
    assert set(halves) == {len(layers) - 1}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_barely_trained_models_are_measured_likewise():
    """Their tokens barely depend on each other: a leak is small, and still found."""
    for name, packs in (("llama", True), ("lfm2", False), ("qwen3_next", False), ("opt", False)):
        config = tiny(name).config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        assert paths_of(model).packs is packs, name


def test_measuring_leaves_modes_gradients_and_random_numbers_alone():
    model = lively_model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    paths_of(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_model_is_measured_once(monkeypatch):
    forwards = []
    model = lively_model()
    model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    paths_of(model)
    assert 0 < len(forwards) < 20
    forwards.clear()
    PolicyModel(apply_lora(freeze(model, torch.bfloat16), LoRAConfig(rank=2)))
    assert not forwards


def test_the_log_says_once_what_is_slower(caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        PolicyModel(tiny("recurrent_gemma"))
    assert caplog.text.count("RecurrentGemmaForCausalLM runs more slowly") == 1
    assert "padded rows" in caplog.text
    assert "transformers' own cache" in caplog.text
    caplog.clear()
    PolicyModel(lively_model())
    assert not caplog.records


def test_an_encoder_is_refused():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = AutoConfig.for_model("bert", vocab_size=96, num_attention_heads=4, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match="BertLMHeadModel cannot be used: its tokens see"):
        PolicyModel(model)
    config.is_decoder = True
    assert paths_of(AutoModelForCausalLM.from_config(config)).decoding == "padded"


def test_a_model_whose_forward_fails_is_refused():
    model = lively_model()
    model.model.layers[0].mlp = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM cannot be used: .*RuntimeError"):
        PolicyModel(model)


def test_weights_that_are_no_numbers_are_left_to_the_guards():
    model = lively_model()
    model.model.norm.weight.data.fill_(float("nan"))
    assert paths_of(model).decoding == "own"
    model.model.norm.weight.data.fill_(1.0)
    assert paths_of(model).packs  # not remembered


def test_named_tokens_are_left_out():
    model = lively_model()
    config = model.config
    config.update({"image_token_id": 12, "eos_token_id": [5, 6]})
    rows = probe_rows(config, torch.device("cpu"))
    assert not set(rows.input_ids.flatten().tolist()) & {5, 6, 12}
    assert torch.equal(rows.input_ids[1, :4], rows.input_ids[2, :4])
    assert not torch.equal(rows.input_ids[0, :4], rows.input_ids[1, :4])
