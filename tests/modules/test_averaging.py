"""Averaged weights: what is handed over, and runs that go on."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_rlhf.checkpoints import read_verified
from tests.support.phase_runs import build
from tests.support.phases import largest_difference, phase_trainer, weights

# It averages copies on each process, which is more memory.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that"
)
PHASES = ("sft", "reward", "dpo", "ppo")
VARIANTS = ("sft-lora", "dpo-precomputed-lora", "ppo-lora")


class FromStep(WeightAveraging):
    """As the page on handing over shows it: the equal average of the last steps."""

    def __init__(self, first_step=8):
        super().__init__()
        self.first_step = first_step

    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx is not None and step_idx >= self.first_step


class Steps(pl.Callback):
    """Keeps the weights behind each batch, and saves once."""

    def __init__(self, path=None):
        self.weights, self.path = [], path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(weights(pl_module.trained_model))

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0 and self.path is not None:
            trainer.save_checkpoint(self.path)


def fit(path, folder, case, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(0)
    module, data = build(case, folder)
    options = {"max_epochs": 2, "limit_val_batches": 1, "enable_checkpointing": True} | options
    trainer = phase_trainer(path, callbacks=list(callbacks), **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


def mean(states):
    return {name: torch.stack([one[name] for one in states]).mean(0) for name in states[0]}


@pytest.mark.parametrize("phase", PHASES)
def test_the_equal_average_is_handed_over(tmp_path, folder, phase):
    steps = Steps()
    module = fit(tmp_path, folder, phase, WeightAveraging(), steps)
    own = weights(module.trained_model)
    assert len(steps.weights) == 6
    assert largest_difference(own, mean(steps.weights)) < 1e-6
    assert largest_difference(own, steps.weights[-1]) > 1e-3
    (saved,) = tmp_path.rglob("model/config.json")
    kind = AutoModelForSequenceClassification if phase == "reward" else AutoModelForCausalLM
    for value in weights(kind.from_pretrained(saved.parent)).values():
        assert any(torch.equal(value, one) for one in own.values())


def test_an_average_may_begin_late(tmp_path, folder):
    steps = Steps()
    module = fit(tmp_path, folder, "sft", FromStep(4), steps)
    assert largest_difference(weights(module.trained_model), mean(steps.weights[4:])) < 1e-6


@pytest.mark.parametrize("case", [*PHASES, *VARIANTS])
@pytest.mark.parametrize("average", [WeightAveraging, EMAWeightAveraging])
def test_an_averaged_run_goes_on(tmp_path, folder, case, average):
    path = tmp_path / "half.ckpt"
    whole = fit(tmp_path / "whole", folder, case, average(), Steps(path))
    rest = fit(tmp_path / "rest", folder, case, average(), ckpt_path=path)
    assert largest_difference(weights(whole), weights(rest)) == 0
    if "ppo" in case:  # which seeds the samples, and is no weight
        assert int(whole.num_iterations) == int(rest.num_iterations) == 6
    checkpoint = read_verified(path)
    assert not any("reference." in name for name in checkpoint["current_model_state"])
    if "lora" in case:
        assert not any("base_layer" in name for name in checkpoint["current_model_state"])
