"""Models and tokenizers as objects, and modules from their checkpoints alone."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_rlhf.data import SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models import LoRAConfig, load_causal_lm, load_reward_model, load_tokenizer
from lit_rlhf.modules import (
    DPOModule,
    OnlineDPOModule,
    OptimizerConfig,
    PPOModule,
    RewardModule,
    SFTModule,
)
from lit_rlhf.objectives import RLOO
from tests.models.examples import plain_model
from tests.support.phase_runs import build
from tests.support.phases import demonstrations, largest_difference, phase_trainer, weights
from tests.support.tokenizer import tiny_tokenizer


@pytest.fixture
def rows():
    return demonstrations(4)


def fit(folder, module, data, **changes):
    trainer = phase_trainer(folder, **{"max_steps": 1, "limit_val_batches": 0} | changes)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["all weights", "LoRA"])
def test_a_model_object_trains_as_its_folder_does(tmp_path, policy, rows, lora):
    model = AutoModelForCausalLM.from_pretrained(policy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {}
    for name, source in {"object": model, "folder": policy, "path": Path(policy)}.items():
        torch.manual_seed(0)
        modules[name] = SFTModule(source, lora=lora)
        data = SFTDataModule(load_tokenizer(policy), train=rows, batch_size=2)
        fit(tmp_path / name, modules[name], data)
        modules[name].save_pretrained(tmp_path / name / "model")
    for name in ("object", "path"):
        assert largest_difference(weights(modules[name]), weights(modules["folder"])) == 0
        saved = [load_causal_lm(str(tmp_path / one / "model")) for one in (name, "folder")]
        assert largest_difference(*map(weights, saved)) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("module_class", [PPOModule, OnlineDPOModule])
def test_the_reference_of_an_object_is_the_model_as_it_was_given(policy, module_class):
    model = plain_model(policy)
    module = module_class(model, lambda prompts, responses: [0.0], reference=model)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # later changes do not count
    module.configure_model()
    assert module.source == module.reference_source
    assert module.arguments["reference"] == module.reference_source  # what checkpoints keep
    assert largest_difference(weights(module.reference.model), weights(plain_model(policy))) == 0


def test_the_tokenizer_that_the_data_were_given_is_the_modules(tmp_path, policy, rows):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    module = SFTModule(policy)
    fit(tmp_path, module, SFTDataModule(tokenizer, train=rows, batch_size=2))
    module.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).chat_template == tokenizer.chat_template


def test_a_model_from_nowhere_is_asked_for_its_tokenizer(policy):
    model = type(plain_model(policy))(plain_model(policy).config)
    model.name_or_path = ""
    module = SFTModule(model)
    with pytest.raises(ConfigError, match=r"model\.policy: .*set the module's `tokenizer`"):
        module.generate(["a"])
    module.tokenizer = load_tokenizer(policy)
    assert len(module.generate(["a"])) == 1


def test_a_tokenizer_that_writes_other_ids_is_refused(tmp_path, policy, rows):
    other = tiny_tokenizer()
    other.add_tokens(["the", "film"])
    other.save_pretrained(tmp_path / "other")
    data = SFTDataModule(tmp_path / "other", train=rows, batch_size=2)
    with pytest.raises(ConfigError, match=r"data\.tokenizer .*other writes other token ids than"):
        fit(tmp_path, SFTModule(policy), data)
    load_tokenizer(policy).save_pretrained(tmp_path / "same")
    data = SFTDataModule(tmp_path / "same", train=rows, batch_size=2)
    assert fit(tmp_path, SFTModule(policy), data).global_step == 1


def test_what_is_no_model_is_refused(policy):
    adapted = get_peft_model(plain_model(policy), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=r"model\.policy: .*merge_and_unload"):
        DPOModule(adapted)
    with pytest.raises(ConfigError, match=r"model\.backbone: give a hub name.*not int"):
        RewardModule(7)
    with pytest.raises(CheckpointError, match="not LlamaForCausalLM"):
        load_reward_model(plain_model(policy))


@pytest.mark.parametrize(
    "phase", ["sft", "reward-lora", "dpo", "ppo", "ppo-grpo", "ppo-lora", "online"]
)
def test_a_checkpoint_alone_gives_its_module(tmp_path, folder, phase):
    module, data = build(phase, folder)
    trainer = fit(tmp_path, module, data)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "any.ckpt")
    own = {name: value for name, value in weights(module).items() if "reference." not in name}
    found = {name: value for name, value in weights(loaded).items() if "reference." not in name}
    assert largest_difference(own, found) == 0
    assert loaded.optimizer == module.optimizer
    assert loaded.lora == module.lora
    if not phase.startswith("reward"):
        assert loaded.generate(["a"], seed=1) == module.generate(["a"], seed=1)


class MySFT(SFTModule):
    def __init__(self, *, extra: float, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


class Mine(RLOO):
    """An estimator that lit_rlhf does not have."""


def test_arguments_of_a_subclass_are_saved_and_may_be_changed(tmp_path, policy, rows):
    module = MySFT(extra=0.5, policy=policy, optimizer=OptimizerConfig(learning_rate=0.25))
    trainer = fit(tmp_path, module, SFTDataModule(policy, train=rows, batch_size=2))
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    loaded = MySFT.load_from_checkpoint(str(tmp_path / "any.ckpt"), cpu_paths=False)
    assert (loaded.extra, loaded.optimizer.learning_rate, loaded.cpu_paths) == (0.5, 0.25, False)
    with pytest.raises(CheckpointError, match="of the phase sft, and dpo cannot"):
        DPOModule.load_from_checkpoint(tmp_path / "any.ckpt")
    with pytest.raises(ConfigError, match="strict"):
        MySFT.load_from_checkpoint(tmp_path / "any.ckpt", strict=True)


def test_a_checkpoint_that_no_phase_wrote_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "others.ckpt")
    with pytest.raises(CheckpointError, match="no phase of lit_rlhf wrote this checkpoint"):
        SFTModule.load_from_checkpoint(tmp_path / "others.ckpt")


def test_what_is_not_in_a_checkpoint_is_asked_for(tmp_path, folder):
    _, data = build("ppo", folder)
    module = PPOModule(str(folder), lambda prompts, responses: [1.0] * len(prompts))
    trainer = fit(tmp_path, module, data)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    loaded = PPOModule.load_from_checkpoint(tmp_path / "any.ckpt")
    assert loaded.generate(["a"]) == module.generate(["a"])
    with pytest.raises(ConfigError, match=r"reward .*lambda.* not in the checkpoint"):
        loaded.reward(["a"], ["b"])
    own = PPOModule(module.source, module.reward, advantage=Mine(2))
    trainer = fit(tmp_path, own, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ConfigError, match=r"advantage: Mine is not .*advantage=\.\.\."):
        PPOModule.load_from_checkpoint(tmp_path / "own.ckpt")
    assert PPOModule.load_from_checkpoint(tmp_path / "own.ckpt", advantage=Mine(2)).advantage.k == 2
