"""LearningRateFinder: its rate is the peak of our schedule, and nothing else of the run changes."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lit_rlhf.callbacks import AveragedWeights, ResumableCSVLogger
from lit_rlhf.checkpoints import read_verified
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import SFTModule
from tests.modules.test_lightning_habits import Rates
from tests.support.phase_runs import build
from tests.support.phases import phase_trainer, weights
from tests.support.two_processes import run_in_two_processes

PHASES = ("sft", "reward", "dpo")


def finder(**changes):
    return LearningRateFinder(**{"num_training_steps": 16, "min_lr": 1e-4} | changes)


def fit(path, folder, phase, *callbacks, rate=None, ckpt_path=None, **options):
    """Train six epochs of three batches; return module and trainer."""
    torch.manual_seed(0)  # of a fresh head
    module, data = build(phase, folder)
    if rate is not None:
        module.optimizer = replace(module.optimizer, learning_rate=rate)
    options = {"max_epochs": 6, "limit_val_batches": 0} | options
    trainer = phase_trainer(path, callbacks=list(callbacks), **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


def same_weights(one, other):
    ones, others = weights(one.trained_model), weights(other.trained_model)
    return all(torch.equal(value, others[name]) for name, value in ones.items())


@pytest.mark.parametrize(
    ("phase", "options"),
    [
        *((phase, {}) for phase in PHASES),
        ("sft", {"limit_val_batches": 1.0, "val_check_interval": 2}),
        ("dpo", {"accumulate_grad_batches": 2, "max_epochs": 16}),
    ],
)
def test_a_searched_run_is_the_one_whose_settings_name_the_rate(tmp_path, folder, phase, options):
    searched, named = Rates(), Rates()
    search = finder(num_training_steps=options.get("max_epochs", 8) * 2)
    module, trainer = fit(tmp_path, folder, phase, search, searched, **options)
    rate = search.optimal_lr.suggestion()
    assert module.learning_rate == rate != build(phase, folder)[0].learning_rate
    plain, other = fit(tmp_path, folder, phase, named, rate=rate, **options)
    assert trainer.global_step == other.global_step
    assert searched.rates == named.rates
    assert max(named.rates) == pytest.approx(rate)
    assert same_weights(module, plain)
    assert not list(tmp_path.rglob(".lr_find*"))


def refusal_of_a_search(path, folder, strategy):
    with pytest.raises(ConfigError) as caught:
        fit(path, folder, "sft", finder(), strategy=strategy, devices=2)
    return str(caught.value)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_processes_are_refused(tmp_path, folder, strategy):
    """Each sees the loss of its own rows alone."""
    for message in run_in_two_processes(
        refusal_of_a_search, tmp_path, folder, strategy, init_process_group=False
    ):
        assert "search with --trainer.devices 1" in message


def test_a_run_that_goes_on_does_not_search_again(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    path, options = tmp_path / "part.ckpt", {"max_epochs": -1, "max_steps": 18}
    whole, _ = fit(tmp_path, folder, "sft", finder(), **options)

    class Halt(Rates):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(path)

    fit(tmp_path, folder, "sft", finder(), Halt(), **options)
    assert f"is {whole.learning_rate:.3g}, was 0.01" in caplog.text
    rest = Rates()
    module, resumed = fit(tmp_path, folder, "sft", finder(), rest, ckpt_path=path, **options)
    assert f"the rate of its checkpoint, {whole.learning_rate:.3g}" in caplog.text
    assert resumed.global_step == 18
    assert len(rest.rates) == 12
    assert module.learning_rate == whole.learning_rate
    assert same_weights(module, whole)
    resumed.save_checkpoint(path)  # names the rate, too
    assert SFTModule.load_from_checkpoint(path).learning_rate == whole.learning_rate


def test_the_rate_is_among_the_settings_that_are_logged_and_saved(tmp_path, folder):
    module, data = build("sft", folder)
    module.run_config = {"model": {"optimizer": {"learning_rate": 1e-2}}}
    logger = ResumableCSVLogger(str(tmp_path), name="run")
    options = {"max_epochs": 6, "limit_val_batches": 0, "enable_checkpointing": True}
    trainer = phase_trainer(tmp_path, callbacks=[finder()], logger=logger, **options)
    trainer.fit(module, data)
    expected = {"model": {"optimizer": {"learning_rate": module.learning_rate}}}
    assert yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text()) == expected
    lineage = json.loads((tmp_path / "run" / "model" / "lineage.json").read_text())
    assert lineage["config"] == expected
    (last,) = tmp_path.rglob("last.ckpt")
    assert read_verified(last)["lit_rlhf_run"]["settings"] == expected


def test_a_search_that_only_suggests_changes_nothing(tmp_path, folder):
    search = finder(update_attr=False)
    module, _ = fit(tmp_path, folder, "sft", search)
    plain, _ = fit(tmp_path, folder, "sft")
    assert search.optimal_lr.suggestion() != module.learning_rate == plain.learning_rate
    assert same_weights(module, plain)


def test_numbers_that_break_in_a_search_are_no_skipped_steps(tmp_path, folder, monkeypatch):
    plain, steps = SFTModule._nll, itertools.count()
    monkeypatch.setattr(
        SFTModule,
        "_nll",
        lambda self, batch: plain(self, batch) * (math.inf if next(steps) == 13 else 1),
    )
    search = finder(early_stop_threshold=None)
    module, _ = fit(tmp_path, folder, "sft", search)
    losses = search.optimal_lr.results["loss"]
    assert (len(losses), sum(map(math.isfinite, losses))) == (16, 13)
    assert module.guard.num_skipped == 0
    assert not list(tmp_path.rglob("skipped_rows.jsonl"))


def test_the_tuner_sets_the_rate_of_the_next_run(tmp_path, folder):
    module, data = build("sft", folder)
    trainer = phase_trainer(tmp_path, max_epochs=6, limit_val_batches=0)
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=16, min_lr=1e-4)
    assert module.learning_rate == found.suggestion()
    trainer.fit(module, data)
    plain, _ = fit(tmp_path, folder, "sft", rate=found.suggestion())
    assert same_weights(module, plain)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that")
def test_an_average_begins_behind_the_search(tmp_path, folder):
    module, _ = fit(tmp_path, folder, "sft", finder(), AveragedWeights(decay=0.5))
    plain, _ = fit(tmp_path, folder, "sft", AveragedWeights(decay=0.5), rate=module.learning_rate)
    assert same_weights(module, plain)


@pytest.mark.parametrize("phase", ["ppo", "online"])
def test_phases_whose_loss_does_not_fall_are_refused(tmp_path, folder, phase):
    with pytest.raises(ConfigError, match=r"LearningRateFinder .*model.optimizer.learning_rate"):
        fit(tmp_path, folder, phase, finder())


def test_what_gives_no_rate_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"LearningRateFinder got 3 finite losses .* needs 13"):
        fit(tmp_path, folder, "sft", finder(), max_epochs=1)

    class AtEpochs(LearningRateFinder):
        def on_fit_start(self, *_):
            return

    with pytest.raises(ConfigError, match=r"AtEpochs .*take Lightning's own"):
        fit(tmp_path, folder, "sft", AtEpochs())
