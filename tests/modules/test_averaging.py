"""Averaged weights: what is handed over, and runs that go on."""

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_rlhf.callbacks import AveragedWeights
from lit_rlhf.checkpoints import read_verified
from lit_rlhf.errors import ConfigError
from tests.support.phase_runs import build
from tests.support.phases import largest_difference, phase_trainer, weights

# It averages copies on each process, which is more memory.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that"
)
PHASES = ("sft", "reward", "dpo", "ppo")
VARIANTS = ("sft-lora", "dpo-precomputed-lora", "ppo-lora")


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


def exponential(states, decay=0.5):
    average = states[0]
    for one in states[1:]:
        average = {name: decay * average[name] + (1 - decay) * one[name] for name in one}
    return average


@pytest.mark.parametrize(("decay", "expected"), [(None, mean), (0.5, exponential)])
@pytest.mark.parametrize("phase", PHASES)
def test_the_average_is_handed_over(tmp_path, folder, phase, decay, expected):
    steps = Steps()
    module = fit(tmp_path, folder, phase, AveragedWeights(decay), steps)
    own = weights(module.trained_model)
    assert len(steps.weights) == 6
    assert largest_difference(own, expected(steps.weights)) < 1e-6
    assert largest_difference(own, steps.weights[-1]) > 1e-3
    (saved,) = tmp_path.rglob("model/config.json")
    kind = AutoModelForSequenceClassification if phase == "reward" else AutoModelForCausalLM
    for value in weights(kind.from_pretrained(saved.parent)).values():
        assert any(torch.equal(value, one) for one in own.values())


def test_an_average_may_begin_late_and_leave_steps_out(tmp_path, folder):
    steps = Steps()
    average = AveragedWeights(update_starting_at_step=1, update_every_n_steps=2)
    module = fit(tmp_path, folder, "sft", average, steps)
    assert largest_difference(weights(module.trained_model), mean(steps.weights[2::2])) < 1e-6


class Sentinel(pl.Callback):
    """Keeps frozen weights and buffers while the average is in place."""

    def on_validation_end(self, trainer, pl_module):
        frozen = [one for one in pl_module.parameters() if not one.requires_grad]
        self.kept = [one.clone() for one in [*frozen, *pl_module.buffers()]]


@pytest.mark.parametrize("case", ["ppo-lora", "dpo"])
def test_what_does_not_train_stays_as_it_is(tmp_path, folder, case):
    """0.999 x + 0.001 x is not always x, and a counter's average is not its count."""
    seen = Sentinel()
    module = fit(tmp_path, folder, case, AveragedWeights(0.999), seen)
    frozen = [one for one in module.parameters() if not one.requires_grad]
    assert frozen
    for kept, one in zip(seen.kept, [*frozen, *module.buffers()], strict=True):
        assert torch.equal(kept, one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "AveragedWeights.decay is 1"),
        ({"update_every_n_steps": 0}, "update_every_n_steps is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AveragedWeights(**options)


@pytest.mark.parametrize("case", [*PHASES, *VARIANTS])
@pytest.mark.parametrize("decay", [None, 0.999])
def test_an_averaged_run_goes_on(tmp_path, folder, case, decay):
    path = tmp_path / "half.ckpt"
    whole = fit(tmp_path / "whole", folder, case, AveragedWeights(decay), Steps(path))
    rest = fit(tmp_path / "rest", folder, case, AveragedWeights(decay), ckpt_path=path)
    assert largest_difference(weights(whole), weights(rest)) == 0
    if "ppo" in case:  # which seeds the samples, and is no weight
        assert int(whole.num_iterations) == int(rest.num_iterations) == 6
    checkpoint = read_verified(path)
    assert not any("reference." in name for name in checkpoint["current_model_state"])
    if "lora" in case:
        assert not any("base_layer" in name for name in checkpoint["current_model_state"])
