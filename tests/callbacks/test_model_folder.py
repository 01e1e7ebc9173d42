import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lit_rlhf.callbacks import AveragedWeights, ModelFolder
from lit_rlhf.data import PPODataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models import LoRAConfig, load_causal_lm
from lit_rlhf.models.lineage import read_lineage
from lit_rlhf.modules import OptimizerConfig, PPOModule, SFTModule
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rollout import Sampling
from tests.models.examples import plain_model
from tests.support.phases import demonstrations, phase_trainer, prompts, weights, write_rows
from tests.support.tiny_models import save_tiny_policy

FAST = OptimizerConfig(learning_rate=0.01)
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(save_tiny_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture
def data(tmp_path, policy):
    path = write_rows(tmp_path / "rows.jsonl", demonstrations(4))
    return SFTDataModule(policy, train=path, validation=path, batch_size=2)


def fit(folder, module, data, *, ckpt_path=None, **options):
    """Fit with checkpoints on, in a folder."""
    options = {"max_epochs": 1, "enable_checkpointing": True} | options
    trainer = phase_trainer(folder, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        warnings.filterwarnings("ignore", "You.re using the WeightAveraging callback")
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def same_logits(folder, module):
    with torch.no_grad():
        saved, own = plain_model(folder)(IDS).logits, module.policy.model(IDS).logits
    return torch.allclose(saved, own, atol=1e-5)


def test_fit_alone_leaves_a_model(tmp_path, policy, data):
    module = SFTModule(policy, optimizer=FAST)
    trainer = fit(tmp_path / "run", module, data)
    folder = Path(trainer.log_dir) / "model"
    assert same_logits(folder, module)
    assert read_lineage(str(folder))["step"] == trainer.global_step == 2
    assert not (folder.parent / "best").exists()


@pytest.mark.parametrize(
    "nothing", [{"enable_checkpointing": False}, {"fast_dev_run": True}], ids=["no", "dry"]
)
def test_a_run_that_keeps_nothing_leaves_nothing(tmp_path, policy, data, nothing):
    fit(tmp_path / "run", SFTModule(policy), data, **nothing)
    assert not list(tmp_path.rglob("model"))


def test_a_callback_of_the_users_own_comes_first(tmp_path, policy, data):
    module = SFTModule(policy, lora=LoRAConfig(rank=2), optimizer=FAST)
    own = ModelFolder(merge=True)
    trainer = fit(tmp_path / "run", module, data, callbacks=[own])
    assert [one for one in trainer.callbacks if isinstance(one, ModelFolder)] == [own]
    assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()
    with torch.no_grad():
        merged = plain_model(tmp_path / "run" / "model")(IDS).logits
        torch.testing.assert_close(merged, module.policy.model(IDS).logits, atol=1e-4, rtol=1e-4)


class Scripted(pl.Callback):
    """Says what validation measured, one number a validation, and keeps the weights."""

    def __init__(self, numbers):
        self.numbers = list(numbers)
        self.weights = []

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/scripted", self.numbers[len(self.weights)])
        self.weights.append(weights(pl_module.policy.model))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_best_is_that_of_the_best_validation(tmp_path, policy, data, mode, best):
    scripted = Scripted([3.0, 1.0, 5.0, float("nan"), 4.0])
    kept = ModelFolder("val/scripted", mode)
    module = SFTModule(policy, optimizer=FAST)
    fit(tmp_path / "run", module, data, max_epochs=5, callbacks=[scripted, kept])
    folder = str(tmp_path / "run" / "best")
    loaded = weights(load_causal_lm(folder))
    assert all(torch.equal(loaded[name], own) for name, own in scripted.weights[best].items())
    facts = read_lineage(folder)
    assert (facts["step"], facts["val/scripted"]) == (2 * (best + 1), scripted.numbers[best])
    assert same_logits(tmp_path / "run" / "model", module)


def test_a_resumed_run_knows_its_best(tmp_path, policy, data):
    first = Scripted([3.0, 5.0])
    kept = [ModelFolder("val/scripted"), first]
    trainer = fit(tmp_path / "run", SFTModule(policy), data, max_epochs=2, callbacks=kept)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = [ModelFolder("val/scripted"), Scripted([4.0])]
    path = tmp_path / "last.ckpt"
    fit(tmp_path / "run", SFTModule(policy), data, max_epochs=3, callbacks=again, ckpt_path=path)
    assert read_lineage(str(tmp_path / "run" / "best"))["val/scripted"] == 5.0


def test_ppo_keeps_the_best_by_its_judge(tmp_path, policy):
    path = write_rows(tmp_path / "prompts.jsonl", prompts(4))
    data = PPODataModule(policy, train=path, validation=path, batch_size=4)
    length = FunctionReward("tests.support.toy_rewards.length")
    for judge, keeps in (("validation", True), ("other", False)):
        sampling = Sampling(max_new_tokens=4)
        module = PPOModule(policy, length, judges={judge: length}, sampling=sampling)
        fit(tmp_path / judge, module, data)
        assert (tmp_path / judge / "best" / "config.json").exists() is keeps
        assert same_logits(tmp_path / judge / "model", module)


def test_averaged_weights_are_handed_over(tmp_path, policy, data):
    class LastStep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.weights = weights(pl_module.policy.model)

    last = LastStep()
    module = SFTModule(policy, optimizer=FAST)
    fit(tmp_path / "run", module, data, max_epochs=3, limit_val_batches=0,
        callbacks=[AveragedWeights(decay=0.5), last])  # fmt: skip
    loaded = weights(load_causal_lm(str(tmp_path / "run" / "model")))
    assert all(torch.equal(loaded[name], own) for name, own in weights(module.policy.model).items())
    assert any(not torch.equal(loaded[name], own) for name, own in last.weights.items())


def test_an_average_of_nothing_is_refused(tmp_path, policy, data):
    with pytest.raises(ConfigError, match="would average nothing; take AveragedWeights"):
        fit(tmp_path, SFTModule(policy), data, callbacks=[StochasticWeightAveraging(0.01)])


def test_best_of_averaged_weights_is_refused(tmp_path, policy, data):
    callbacks = [AveragedWeights(), ModelFolder("val/sft/loss", "min")]
    with pytest.raises(ConfigError, match=r"AveragedWeights.*set save_model\.monitor to null"):
        fit(tmp_path / "run", SFTModule(policy), data, callbacks=callbacks)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["full", "lora"])
def test_a_run_does_not_replace_what_it_starts_from(tmp_path, policy, data, lora):
    folder = tmp_path / "run"
    fit(folder, SFTModule(policy, lora=lora), data)
    before = {path: path.read_bytes() for path in (folder / "model").iterdir()}
    source = str(folder / ".." / "run" / "model")
    with pytest.raises(ConfigError, match=r"policy: .*model is in the folder of this run"):
        fit(folder, SFTModule(source, lora=lora), data)
    assert {path: path.read_bytes() for path in (folder / "model").iterdir()} == before
    fit(tmp_path / "next", SFTModule(source, lora=lora), data)


def test_a_metric_that_is_none_is_named(tmp_path, policy, data):
    with pytest.raises(ConfigError, match=r"no metric val/sft/los; there are: .*val/sft/loss"):
        fit(tmp_path / "run", SFTModule(policy), data, callbacks=[ModelFolder("val/sft/los")])
    with pytest.raises(ConfigError, match=r"save_model\.mode is 'best'"):
        ModelFolder(mode="best")


def test_a_full_disk_loses_neither_the_run_nor_the_older_best(tmp_path, policy, data, monkeypatch):
    full = "lit_rlhf.modules.phase.save_policy"

    class FillsUp(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                monkeypatch.setattr(full, no_space)

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    kept = ModelFolder("val/scripted")
    callbacks = [FillsUp(), Scripted([1.0, 2.0, 3.0]), kept]
    module = SFTModule(policy)
    with (
        pytest.warns(UserWarning, match=r"best: .* \(.*No space.*; the older one is kept"),
        pytest.raises(CheckpointError, match=r"model: .*No space.*--ckpt_path last writes"),
    ):
        fit(tmp_path / "run", module, data, max_epochs=3, callbacks=callbacks)
    assert module.trainer.global_step == 6
    assert read_lineage(str(tmp_path / "run" / "best"))["val/scripted"] == 1.0
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert kept.best_score == 1.0
