import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from lit_rlhf.models import LoRAConfig, apply_lora
from lit_rlhf.models.backbone import trunk_of
from lit_rlhf.models.freezing import freeze_unread
from tests.support.tiny_models import llama_config

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28}


def with_tower():
    """Return a tiny Gemma 3, which has a tower for images as those of 4B and more have."""
    text = {**llama_config().to_dict(), "head_dim": 16, "sliding_window": 64}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads", "sliding_window")
    config = Gemma3Config(
        text_config={name: text[name] for name in names},
        vision_config=VISION | {"num_attention_heads": 2, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def without_gradient(model):
    return {
        name for name, one in model.named_parameters() if one.requires_grad and one.grad is None
    }


def test_every_weight_that_trains_gets_a_gradient_of_texts():
    """Or ddp would wait for those of the tower."""
    for model in (with_tower(), trunk_of(with_tower()), apply_lora(with_tower(), LoRAConfig())):
        freeze_unread(model)
        model(input_ids=torch.tensor([[5, 6, 7]]))[0].sum().backward()
        assert not without_gradient(model)
        assert any(parameter.grad is not None for parameter in model.parameters())


def test_a_model_of_texts_alone_trains_whole():
    model = AutoModelForCausalLM.from_config(llama_config())
    freeze_unread(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
