"""Callbacks and limits of Lightning: each does what it promises, or is refused in one line."""

import os
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as shipped
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.optimizers import OptimizerConfig
from tests.support.phase_runs import build
from tests.support.phases import Recorder, largest_difference, phase_trainer, weights
from tests.support.two_processes import rank_environment, run_in_processes

PHASES = ("sft", "reward", "dpo", "ppo")
STEPS_A_BATCH = {"ppo": 2}


class Rates(pl.Callback):
    """Keeps the learning rate of each batch."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(path, folder, phase, *callbacks, ckpt_path=None, **options):
    module, data = build(phase, folder)
    options = {"max_epochs": 1, "limit_val_batches": 0} | options
    trainer = phase_trainer(path, callbacks=list(callbacks), **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (BatchSizeFinder(), "accumulate_grad_batches"),
        (StochasticWeightAveraging(1e-2), "AveragedWeights"),
        (WeightAveraging(), "AveragedWeights"),
        (EMAWeightAveraging(), "AveragedWeights .*decay"),
        (BackboneFinetuning(), "model.lora"),
        (ModelPruning("l1_unstructured"), "the folder"),
        (GradientAccumulationScheduler({1: 2}), "trainer.accumulate_grad_batches"),
    ],
    ids=["sizes", "SWA", "equal", "exponential", "frozen layers", "pruning", "accumulation"],
)
def test_what_would_not_do_as_it_says_is_refused(tmp_path, folder, phase, callback, remedy):
    with pytest.raises(ConfigError, match=f"{type(callback).__name__} .*{remedy}"):
        fit(tmp_path, folder, phase, callback)


class Writer(BasePredictionWriter):
    """Keeps what is predicted."""

    def __init__(self):
        super().__init__("batch_and_epoch")
        self.rows = []

    def write_on_batch_end(self, trainer, pl_module, prediction, *_):
        self.rows += prediction

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        assert self.rows == [row for batch in predictions for row in batch]


class Breaks(pl.Callback):
    """Ends a run by an error."""

    def on_train_end(self, trainer, pl_module):
        raise InterruptedError


# Tried below or in other tests, refused above, or nothing by itself.
ELSEWHERE = (
    *("BackboneFinetuning", "BaseFinetuning", "BatchSizeFinder", "GradientAccumulationScheduler"),
    *("ModelPruning", "StochasticWeightAveraging", "EarlyStopping", "LearningRateFinder"),
    *("EMAWeightAveraging", "WeightAveraging", "SpikeDetection"),
    *("Callback", "Checkpoint", "ProgressBar"),
)


def working_callbacks(path):
    return {
        "BasePredictionWriter": Writer(),
        "DeviceStatsMonitor": shipped.DeviceStatsMonitor(cpu_stats=True),
        "LambdaCallback": shipped.LambdaCallback(),
        "LearningRateMonitor": shipped.LearningRateMonitor("step"),
        "ModelCheckpoint": ModelCheckpoint(path / "kept"),
        "ModelSummary": shipped.ModelSummary(),
        "OnExceptionCheckpoint": shipped.OnExceptionCheckpoint(path / "broken"),
        "RichModelSummary": shipped.RichModelSummary(),
        "RichProgressBar": shipped.RichProgressBar(),
        "TQDMProgressBar": shipped.TQDMProgressBar(),
        "ThroughputMonitor": shipped.ThroughputMonitor(lambda batch: 1),
        "Timer": Timer(duration={"hours": 1}),
    }


@pytest.mark.filterwarnings("ignore:.*was called without a model")  # of OnExceptionCheckpoint
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint")  # likewise
@pytest.mark.filterwarnings("ignore:Couldn.t infer the batch indices")  # rows have their prompts
@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`")  # it counts no FLOPs
@pytest.mark.parametrize("phase", [*PHASES, "online"])
@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_every_other_callback_of_lightning_works(tmp_path, folder, phase, bar):
    callbacks = working_callbacks(tmp_path)
    assert sorted((*callbacks, *ELSEWHERE)) == sorted(shipped.__all__)
    for other in {"RichProgressBar", "TQDMProgressBar"} - {bar}:
        del callbacks[other]  # one at a time
    module, data = build(phase, folder)
    logger = CSVLogger(tmp_path)
    options = {
        "max_epochs": 2,
        "logger": logger,
        "enable_checkpointing": True,
        "enable_progress_bar": True,
        "enable_model_summary": True,
    }
    trainer = phase_trainer(tmp_path, callbacks=[*callbacks.values(), Breaks()], **options)
    with pytest.raises(InterruptedError):
        trainer.fit(module, data)
    assert trainer.global_step == 6 * STEPS_A_BATCH.get(phase, 1)
    names = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    for start in ("learning_rate", "train/batches", "DeviceStatsMonitor.on_train_batch"):
        assert any(name.startswith(start) for name in names), start
    assert callbacks["Timer"].time_elapsed() > 0
    assert [*(tmp_path / "kept").iterdir()]
    assert (tmp_path / "broken" / "on_exception.ckpt").is_file()
    if phase != "reward":  # whose fresh head would score nothing
        data.sources["predict"] = data.sources["train"]
        trainer = phase_trainer(tmp_path, callbacks=[callbacks["BasePredictionWriter"]])
        trainer.predict(module, data)
        assert callbacks["BasePredictionWriter"].rows


@pytest.mark.parametrize("phase", [*PHASES, "online"])
def test_spikes_are_looked_for_where_a_batch_has_one_loss(tmp_path, folder, phase):
    spikes = SpikeDetection(atol=1e9, exclude_batches_path=tmp_path)
    if phase == "ppo":
        with pytest.raises(ConfigError, match="SpikeDetection reads the loss"):
            fit(tmp_path, folder, phase, spikes)
        return
    fit(tmp_path, folder, phase, spikes)
    assert spikes.last_val != 0


def test_names_of_metrics_make_no_folders(tmp_path, folder):
    named = ModelCheckpoint(tmp_path, "{step}-{train/sft/loss:.2f}")
    with pytest.raises(ConfigError, match=r"folders of the name train/sft/loss: .*loss=\{train"):
        fit(tmp_path, folder, "sft", named, enable_checkpointing=True)
    own = ModelCheckpoint(
        tmp_path, "{step}-loss={train/sft/loss:.2f}", auto_insert_metric_name=False
    )
    fit(tmp_path, folder, "sft", own, enable_checkpointing=True)
    assert [path.name.partition("=")[0] for path in tmp_path.glob("*.ckpt")] == ["3-loss"]


@pytest.mark.parametrize("phase", PHASES)
def test_early_stopping_stops_within_an_epoch_that_is_validated_every_batch(
    tmp_path, folder, phase
):
    metric = {"sft": "loss", "reward": "brier", "dpo": "accuracy", "ppo": "reward"}[phase]
    stop = EarlyStopping(f"val/{phase}/{metric}", patience=1, min_delta=100, mode="max")
    options = {"val_check_interval": 1, "limit_val_batches": 1}
    trainer = fit(tmp_path, folder, phase, stop, **options)
    assert trainer.global_step == 2 * STEPS_A_BATCH.get(phase, 1)  # of three batches
    own = EarlyStopping(f"val/{phase}/{metric}", patience=1, min_delta=100, mode="max")
    once = fit(tmp_path, folder, phase, own, val_check_interval=1.0, limit_val_batches=1)
    assert once.global_step == 3 * STEPS_A_BATCH.get(phase, 1)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("interval", "expected"),
    [(0, "val_check_interval 0 is no interval"), (4, "4 is more than the 3 batches .*iterations")],
)
def test_an_interval_that_no_epoch_reaches_is_refused(tmp_path, folder, phase, interval, expected):
    options = {"val_check_interval": interval, "limit_val_batches": 1}
    with pytest.raises(ConfigError, match=expected):
        fit(tmp_path, folder, phase, **options)
    if interval:
        options |= {"check_val_every_n_epoch": None, "max_epochs": 2}
        assert fit(tmp_path, folder, phase, **options).current_epoch == 2


@pytest.mark.parametrize("phase", PHASES)
def test_a_time_may_part_two_validations(tmp_path, folder, phase):
    recorder = Recorder()
    at_once = timedelta(microseconds=1)
    fit(tmp_path, folder, phase, recorder, val_check_interval=at_once, limit_val_batches=1)
    assert recorder.held_out


@pytest.mark.parametrize("phase", PHASES)
def test_a_finished_run_that_is_extended_follows_the_longer_schedule(tmp_path, folder, phase):
    whole, part, rest = Rates(), Rates(), Rates()
    fit(tmp_path / "whole", folder, phase, whole, max_epochs=4)
    trainer = fit(tmp_path / "part", folder, phase, part, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    extended = fit(
        tmp_path / "part", folder, phase, rest, max_epochs=4, ckpt_path=tmp_path / "last.ckpt"
    )
    assert extended.global_step == 12 * STEPS_A_BATCH.get(phase, 1)
    assert len(part.rates) == len(rest.rates) == 6
    assert rest.rates[1:] == pytest.approx(whole.rates[7:])  # as if it had always been so long
    assert sorted(rest.rates[1:], reverse=True) == rest.rates[1:]  # no saw teeth


@pytest.mark.parametrize("phase", PHASES)
def test_a_timer_ends_a_run_between_batches(tmp_path, folder, phase):
    class Late(Timer):
        def time_elapsed(self, stage="train"):
            return 4000.0 if trainer_steps() else 0.0

    timer = Late(duration={"hours": 1})
    module, data = build(phase, folder)
    trainer = phase_trainer(tmp_path, callbacks=[timer], max_epochs=1, limit_val_batches=0)

    def trainer_steps():
        return trainer.global_step

    trainer.fit(module, data)
    assert trainer.global_step == STEPS_A_BATCH.get(phase, 1)


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_may_end_by_time_alone(tmp_path, folder, phase):
    class Soon(Timer):
        def time_elapsed(self, stage="train"):
            return 4000.0 if len(rates.rates) > 7 else 0.0

    rates = Rates()
    options = {"max_epochs": -1, "limit_val_batches": 0}
    module, data = build(phase, folder)
    module.optimizer = OptimizerConfig(schedule="constant", learning_rate=1e-3, warmup_fraction=0.5)
    trainer = phase_trainer(tmp_path, callbacks=[rates, Soon(duration={"hours": 1})], **options)
    trainer.fit(module, data)
    assert rates.rates[2:] == pytest.approx([1e-3] * 6)  # warmed up in half of an epoch of three
    assert sorted(rates.rates[:3]) == rates.rates[:3]
    for schedule, message in (("linear", "max_time alone .*schedule linear"), ("constant", None)):
        module, data = build(phase, folder)
        module.optimizer = OptimizerConfig(schedule=schedule)
        timers = [Soon(duration={"hours": 1})] if message else []
        with pytest.raises(ConfigError, match=message or "max_epochs -1 has no end"):
            phase_trainer(tmp_path, callbacks=timers, **options).fit(module, data)


@pytest.mark.parametrize("phase", PHASES)
def test_ppo_counts_steps_of_the_optimizer(tmp_path, folder, phase, caplog):
    caplog.set_level("INFO")
    trainer = fit(tmp_path, folder, phase, max_steps=2, max_epochs=-1)
    assert trainer.global_step == 2
    said = "trainer.max_steps=2 counts optimizer steps: the run ends after 1 iterations of 2 steps"
    assert (said in caplog.text) == (phase == "ppo")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("overfit", "num_batches"), [(1, 1), (2, 2), (0.5, 1)])
def test_overfitting_sees_the_same_batches_in_each_epoch(
    tmp_path, folder, phase, overfit, num_batches
):
    class Seen(pl.Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows = batch.rows if hasattr(batch, "rows") else batch
            self.batches.append(rows.input_ids.tolist())

    seen, rest = Seen(), Seen()
    options = {"overfit_batches": overfit, "max_epochs": 4}
    trainer = fit(tmp_path, folder, phase, seen, **options)
    assert len(seen.batches) == 4 * num_batches
    assert seen.batches == 4 * seen.batches[:num_batches]
    assert len({str(batch) for batch in seen.batches}) == num_batches
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    options["max_epochs"] = 6
    fit(tmp_path, folder, phase, rest, ckpt_path=tmp_path / "last.ckpt", **options)
    assert rest.batches == seen.batches[: 2 * num_batches]


class KeepsWeights(pl.Callback):
    """Writes down what rank zero has trained."""

    def __init__(self, path):
        self.path = path

    def on_fit_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save(weights(pl_module), self.path)


def fit_as_in_a_notebook(path, folder):
    """Return by how much the module of the process that asked differs from what was trained."""
    for name in rank_environment(0, 0):
        os.environ.pop(name)
    differences = {}
    for phase in PHASES:
        module, data = build(phase, folder)
        kept = KeepsWeights(path / f"{phase}.pt")
        options = {"max_epochs": 1, "devices": 2, "strategy": "ddp_fork"}
        phase_trainer(path, callbacks=[kept], **options).fit(module, data)
        module.save_pretrained(path / phase)
        differences[phase] = largest_difference(weights(module), torch.load(kept.path))
    return differences


def test_a_notebook_gets_what_its_processes_trained(tmp_path, folder):
    answers = run_in_processes(1, fit_as_in_a_notebook, tmp_path, folder, init_process_group=False)
    assert answers == [dict.fromkeys(PHASES, 0)]
