from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.data import DPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models import LoRAConfig, load_tokenizer
from lit_rlhf.models.handover import CARD_KEY, read_checkpoint
from lit_rlhf.modules import DPOModule, OptimizerConfig, RewardModule, SFTModule
from tests.support.phases import demonstrations, judged_groups, phase_trainer, write_rows


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


def test_a_checkpoint_carries_its_card(checkpoint, policy):
    card, state = read_checkpoint(str(checkpoint), kind="policy")
    assert card.lora is None
    assert set(card.tokenizer) >= {"tokenizer.json", "tokenizer_config.json"}
    assert load_tokenizer(str(checkpoint)).get_vocab() == load_tokenizer(policy).get_vocab()
    assert all(name.startswith("policy.model.") for name in state)
    with pytest.raises(CheckpointError, match="holds a policy model, but a reward model"):
        read_checkpoint(str(checkpoint), kind="reward")


def test_a_checkpoint_is_read_without_executing_code(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert CARD_KEY in content


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


def test_a_run_without_end_has_no_schedule(tmp_path, policy, data):
    with pytest.raises(ConfigError, match="max_epochs -1 has no end"):
        phase_trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(SFTModule(policy), data)


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


def test_gradients_are_clipped_and_accumulated_by_the_trainer(tmp_path, policy, data):
    trainer = phase_trainer(
        tmp_path, limit_val_batches=0, gradient_clip_val=1e-3, accumulate_grad_batches=2
    )
    trainer.fit(SFTModule(policy), data)
    assert trainer.global_step == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_frozen_layers_are_stored_as_the_precision_computes(policy, precision):
    module = SFTModule(policy, lora=LoRAConfig(rank=2))
    assert module.frozen_dtype is None  # no Trainer yet
    module._trainer = SimpleNamespace(precision=precision)
    expected = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}
    assert module.frozen_dtype == expected[precision]
