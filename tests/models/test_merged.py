import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_rlhf.models import LoRAConfig, apply_lora
from lit_rlhf.models.weights import merged_weights, write_weights
from tests.models.examples import ARCHITECTURES, lively_model, shake


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_names_are_those_of_the_folder_and_adapters_are_merged(architecture, tmp_path):
    adapted = apply_lora(lively_model(architecture), LoRAConfig(rank=2))
    shake(adapted)
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    weights = merged_weights(adapted)
    for name, value in adapted.named_parameters():
        assert torch.equal(value, before[name])
    adapted.merge_and_unload().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() <= weights.keys()
    assert weights.keys() - saved.keys() <= {"lm_head.weight"}  # tied
    for name, weight in saved.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0)


def test_a_tied_output_stands_under_its_own_name():
    weights = merged_weights(lively_model())
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_what_is_written_is_read_back_as_a_model(tmp_path):
    model = lively_model()
    model.config.save_pretrained(tmp_path)
    write_weights(merged_weights(model), tmp_path, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight)
    write_weights(merged_weights(model), tmp_path, torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
