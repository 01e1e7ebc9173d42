import collections
import hashlib
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import modeling_utils

from lit_rlhf.callbacks import LastCheckpoint, ModelFolder, ResumableCSVLogger, SelfChecks
from lit_rlhf.data import DPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError, DataError
from lit_rlhf.models import LoRAConfig, handover, lineage, load_causal_lm, load_reward_model
from lit_rlhf.models.handover import load_tokenizer
from lit_rlhf.models.lineage import describe_origin, read_lineage
from lit_rlhf.modules import (
    DPOModule,
    NormalizerConfig,
    OptimizerConfig,
    PPOModule,
    RewardModule,
    SFTModule,
    UpdateConfig,
)
from lit_rlhf.modules.arguments import plain_settings
from lit_rlhf.objectives import RLOO
from lit_rlhf.rollout import Sampling
from tests.models.examples import plain_model
from tests.support.phase_runs import build
from tests.support.phases import (
    Recorder,
    demonstrations,
    judged_groups,
    phase_trainer,
    write_rows,
)


@pytest.fixture
def data(tmp_path, policy):
    path = write_rows(tmp_path / "rows.jsonl", demonstrations(4))
    return SFTDataModule(policy, train=path, validation=path, batch_size=2)


@pytest.fixture
def checkpoint(tmp_path, policy, data):
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(SFTModule(policy), data)
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    return tmp_path / "policy.ckpt"


def lineage_after(tmp_path, module, data):
    """Return what a run of one step writes as its lineage, and its folder."""
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    folder = str(tmp_path / type(module).__name__)
    module.save_pretrained(folder)
    return read_lineage(folder), folder


def test_a_folder_says_what_it_was_made_from(tmp_path, policy, data):
    made, _ = lineage_after(tmp_path, SFTModule(policy), data)
    file = tmp_path / "rows.jsonl"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = {"source": str(file), "sha256": digest, "rows": 4}
    assert made["data"] == {"train": entry, "validation": entry}
    assert made["phase"] == "SFTModule"
    assert made["config"] is None  # no command line
    assert made["origins"]["policy"]["source"] == policy
    assert made["versions"]["torch"] == torch.__version__


def test_the_lineage_of_the_origin_travels_along(tmp_path, policy, data):
    first, folder = lineage_after(tmp_path, SFTModule(policy), data)
    groups = write_rows(tmp_path / "groups.jsonl", judged_groups(4))
    data = RewardDataModule(folder, train=groups, batch_size=2, limit_train=3)
    made, _ = lineage_after(tmp_path, RewardModule(folder), data)
    assert made["data"]["train"]["rows"] == 3
    origin = made["origins"]["backbone"]
    assert origin["sha256"] == describe_origin(folder)["sha256"]
    assert origin["lineage"]["data"] == first["data"]


def test_the_policy_of_the_normaliser_is_an_origin(policy):
    normalizer = NormalizerConfig("prompts.jsonl", policy=policy)
    origins = RewardModule("a/backbone", normalizer=normalizer).origins
    assert origins == {"backbone": "a/backbone", "normalizer": policy}


def test_a_folder_is_opened_once_at_the_start_of_a_phase(tmp_path, policy, data, monkeypatch):
    opened = collections.Counter()

    def counted(module, name):
        original = getattr(module, name)

        def count(source, *args, **kwargs):
            opened[name, Path(source).name] += 1
            return original(source, *args, **kwargs)

        monkeypatch.setattr(module, name, count)

    counted(lineage, "digest_file")
    counted(handover.AutoTokenizer, "from_pretrained")
    counted(modeling_utils, "safe_open")
    phase_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(SFTModule(policy), data)
    assert opened.pop(("from_pretrained", Path(policy).name)) == 1
    assert opened["digest_file", "model.safetensors"] == 1
    assert opened["safe_open", "model.safetensors"] == 1
    assert set(opened.values()) == {1}


def test_resuming_with_another_model_setting_is_refused(tmp_path, policy, data, checkpoint):
    module = SFTModule(policy, lora=LoRAConfig(rank=2))
    trainer = phase_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    with pytest.raises(CheckpointError, match=r"lacks \d+ trained weights, for one policy\.model"):
        trainer.fit(module, data, ckpt_path=str(checkpoint))


def test_the_schedule_runs_over_the_whole_run(tmp_path, policy, data):
    settings = OptimizerConfig(learning_rate=1.0e-3, schedule="linear", warmup_fraction=0.0)
    module = SFTModule(policy, optimizer=settings)
    trainer = phase_trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    trainer.fit(module, data)
    assert trainer.global_step == 6
    assert module.num_scheduler_steps == 6
    assert module.lr_schedulers().get_last_lr() == [0.0, 0.0]


def after_one_step(tmp_path, module, data, num_batches):
    trainer = phase_trainer(
        tmp_path,
        max_steps=1,
        limit_val_batches=0,
        accumulate_grad_batches=num_batches,
        gradient_clip_val=0.5,
    )
    trainer.fit(module, data)
    assert trainer.global_step == 1
    return {name: value.detach() for name, value in module.named_parameters()}


@pytest.mark.parametrize("phase", ["sft", "reward", "dpo"])
def test_a_step_is_a_mean_over_all_that_it_counts_however_it_is_cut(tmp_path, policy, phase):
    """Rows and groups differ in what they count, so that a mean of means would be another step."""
    rows = demonstrations(8) if phase == "sft" else judged_groups(8)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    # Plain descent: Adam would hide a factor on the whole gradient, clipping does not, when small.
    module_class, data_class = {
        "sft": (SFTModule, SFTDataModule),
        "reward": (RewardModule, RewardDataModule),
        "dpo": (DPOModule, DPODataModule),
    }[phase]
    after = []
    for num_batches in (1, 4, 8):
        torch.manual_seed(0)
        module = module_class(policy, optimizer=OptimizerConfig(learning_rate=1e-3, eps=1.0))
        data = data_class(policy, train=path, batch_size=8 // num_batches)
        after.append(after_one_step(tmp_path, module, data, num_batches))
    for other in after[1:]:
        torch.testing.assert_close(other, after[0], rtol=1e-5, atol=1e-7)


class HeldGradients(pl.Callback):
    """Counts the gradients there are when a forward begins."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counts.append(sum(p.grad is not None for p in pl_module.parameters()))


def test_no_forward_holds_the_gradients_of_the_last_step(tmp_path, policy, data):
    held = HeldGradients()
    trainer = phase_trainer(
        tmp_path, max_epochs=2, limit_val_batches=0, accumulate_grad_batches=2, callbacks=[held]
    )
    module = SFTModule(policy)
    trainer.fit(module, data)
    assert held.counts == [0, len(list(module.parameters())), 0, len(list(module.parameters()))]


def test_a_policy_stored_in_16_bits_trains_in_float32(policy, tmp_path):
    load_causal_lm(policy).to(torch.bfloat16).save_pretrained(tmp_path)
    load_tokenizer(policy).save_pretrained(tmp_path)
    module = SFTModule(str(tmp_path))
    module.configure_model()
    found = module.trained_model.model.state_dict()
    for name, value in load_causal_lm(str(tmp_path)).state_dict().items():
        assert found[name].dtype == torch.float32, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_frozen_layers_are_stored_as_the_precision_computes(policy, precision):
    module = SFTModule(policy, lora=LoRAConfig(rank=2))
    assert module.frozen_dtype is None  # no Trainer yet
    module._trainer = SimpleNamespace(precision=precision)
    expected = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}
    assert module.frozen_dtype == expected[precision]


MEMORY_OPTIONS = {
    "checkpointing": {"activation_checkpointing": True},
    "states-bf16": {"optimizer": OptimizerConfig(states="bf16")},
    "states-8bit": {"optimizer": OptimizerConfig(states="8bit")},
    "weights-bf16": {"optimizer": OptimizerConfig(weights="bf16")},
    "weights-bf16-states-8bit": {"optimizer": OptimizerConfig(weights="bf16", states="8bit")},
}


@pytest.fixture
def not_compiled():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("case", ["sft", "reward", "dpo", "ppo", "sft-lora", "ppo-lora"])
@pytest.mark.parametrize("option", MEMORY_OPTIONS)
@pytest.mark.usefixtures("not_compiled")
def test_a_phase_with_a_memory_option_hands_over(folder, tmp_path, case, option):
    """One step moves what trains, gradients clipped; the folder is read in float32."""
    module, data = build(case, folder, **MEMORY_OPTIONS[option])
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=1, precision="bf16-mixed")
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    before = {}
    trainer.callbacks.append(Remember(before))
    trainer.fit(module, data)
    moved = [name for name, value in module.named_parameters() if name in before]
    after = dict(module.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in moved)
    in_bf16 = {name for name in moved if after[name].dtype == torch.bfloat16}
    kept_wide = {name for name in moved if "head" in name or "lora_" in name}
    assert in_bf16 == (set(moved) - kept_wide if "weights-bf16" in option else set())
    if case.startswith("ppo"):
        assert recorder.values("train/ppo/first_log_ratio") == [0]
    module.save_pretrained(tmp_path / "model")
    load = load_reward_model if case == "reward" else load_causal_lm
    model = load(str(tmp_path / "model"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Remember(pl.Callback):
    """Keeps copies of what trains, as it is when the training begins."""

    def __init__(self, weights):
        self.weights = weights

    def on_train_start(self, trainer, pl_module):
        for name, value in pl_module.named_parameters():
            if value.requires_grad:
                self.weights[name] = value.detach().clone()


def test_the_reference_of_a_policy_in_bf16_is_the_policy(folder, tmp_path):
    """The same rounding on both sides: no distance before the first step."""
    module, data = build("ppo", folder, optimizer=OptimizerConfig(weights="bf16"))
    recorder = Recorder()
    trainer = phase_trainer(tmp_path, precision="bf16-mixed", callbacks=[recorder], max_steps=1)
    trainer.validate(module, data)
    assert {value.dtype for value in module.reference.parameters()} == {torch.bfloat16}
    assert recorder.held_out["val/ppo/kl"] == 0


def test_resuming_with_another_storage_is_refused(tmp_path, policy, data, checkpoint):
    module = SFTModule(policy, optimizer=OptimizerConfig(states="bf16"))
    trainer = phase_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    with pytest.raises(CheckpointError, match=r"had model\.optimizer .*float32.* has .*bf16"):
        trainer.fit(module, data, ckpt_path=str(checkpoint))


def test_a_run_from_python_brings_what_the_command_line_does(tmp_path, policy, data):
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(SFTModule(policy), data)
    counts = collections.Counter(type(callback) for callback in trainer.callbacks)
    assert [counts[kind] for kind in (SelfChecks, ModelFolder, LastCheckpoint)] == [1, 1, 1]
    assert next(tmp_path.rglob("last.ckpt")).is_file()
    keeps_nothing = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    keeps_nothing.fit(SFTModule(policy), data)
    counts = collections.Counter(type(callback) for callback in keeps_nothing.callbacks)
    assert [counts[kind] for kind in (SelfChecks, ModelFolder, LastCheckpoint)] == [0, 0, 0]


def test_a_policy_responds_to_plain_prompts_as_transformers_does(policy):
    prompts, model, tokenizer = ["say 1: ", "tell me"], plain_model(policy), load_tokenizer(policy)
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
        expected.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    greedy = Sampling(max_new_tokens=4, temperature=0.0)
    module = SFTModule(policy)  # no Trainer has seen it
    assert module.generate(prompts, sampling=greedy) == expected
    twice = module.generate(prompts, sampling=greedy, samples_per_prompt=2)
    assert twice == [expected[0], expected[0], expected[1], expected[1]]
    drawn = [module.generate(prompts, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("prompts", ["a text", []])
def test_what_is_no_list_of_prompts_is_refused(policy, prompts):
    with pytest.raises(ConfigError, match="give a list of prompts"):
        SFTModule(policy).generate(prompts)


@pytest.mark.parametrize(
    ("prompts", "place"),
    [
        ([{"role": "user", "content": "a chat without its list"}], "prompt 0: field 'prompt'"),
        (["a", 5], "prompt 1: field 'prompt'"),
        (["a", [{"role": "user"}]], r"prompt 1: field 'prompt\[0\].content'"),
    ],
)
def test_what_is_no_prompt_is_named(policy, prompts, place):
    with pytest.raises(DataError, match=place):
        SFTModule(policy).generate(prompts)


def test_no_responses_at_all_are_refused(policy):
    with pytest.raises(ConfigError, match="samples_per_prompt"):
        SFTModule(policy).generate(["a"], samples_per_prompt=0)


def test_a_module_that_nothing_has_used_yet_is_saved(tmp_path, policy):
    SFTModule(policy).save_pretrained(tmp_path / "model")
    greedy = Sampling(max_new_tokens=4, temperature=0.0)
    saved = SFTModule(str(tmp_path / "model")).generate(["a"], sampling=greedy)
    assert saved == SFTModule(policy).generate(["a"], sampling=greedy)


def test_a_reward_model_does_not_respond(policy):
    with pytest.raises(ConfigError, match="RewardModule trains no policy"):
        RewardModule(policy).generate(["a"])


def test_settings_are_logged(tmp_path, policy, data):
    logger = ResumableCSVLogger(str(tmp_path), name="run")
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0, logger=logger)
    trainer.fit(SFTModule(policy, optimizer=OptimizerConfig(learning_rate=3e-4)), data)
    logged = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert logged["policy"] == policy
    assert logged["optimizer"]["learning_rate"] == 3e-4
    assert logged["lora"] is None


def test_settings_of_ppo_are_plain_values():
    def mine(prompts, responses):
        return [0.0]

    module = PPOModule("folder", mine, advantage=RLOO(k=3), update=UpdateConfig(num_epochs=2))
    settings = plain_settings(module)
    assert settings["update"]["num_epochs"] == 2
    assert settings["advantage"] == {"class": "RLOO", "k": 3}
    assert settings["reward"]["function"].endswith("mine")
    assert settings["judges"] == {}
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


@pytest.mark.parametrize("settings", [{"every_n_train_steps": 3}, {"save_top_k": -1}])
def test_a_checkpoint_callback_of_the_user_is_not_replaced(folder, settings):
    module, _ = build("sft", folder)
    for own, is_kept in ((ModelCheckpoint(**settings), True), (ModelCheckpoint(), False)):
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[own])
        brought = {type(one).__name__ for one in module.configure_callbacks()}
        assert ("LastCheckpoint" not in brought) == is_kept
        assert "ModelFolder" in brought
