import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_rlhf.callbacks import SelfChecks
from lit_rlhf.errors import ConfigError
from tests.support.phase_runs import build
from tests.support.phases import phase_trainer
from tests.support.reporting import ReportingModule, quiet_trainer


class Plateau(ReportingModule):
    """Lowers the rate by a metric, which is misspelt."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val/los"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Late(ReportingModule):
    """Logs a metric when an epoch ends."""

    def on_train_epoch_end(self):
        self.log("train_late", 1.0)


def fit(folder, callback, module=None, **changes):
    trainer = quiet_trainer(
        folder,
        callbacks=[SelfChecks(), callback],
        enable_checkpointing=isinstance(callback, ModelCheckpoint),
        **changes,
    )
    trainer.fit(module or ReportingModule())
    return trainer


@pytest.mark.parametrize(
    ("monitor", "words"),
    [("val/los", "did you mean 'val/loss'"), ("accuracy", "there are: val/loss")],
)
@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_misspelt_monitor_is_refused_before_training(tmp_path, kind, monitor, words):
    class NoTraining(ReportingModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

    trainer = quiet_trainer(
        tmp_path,
        callbacks=[SelfChecks(), kind(monitor=monitor)],
        enable_checkpointing=kind is ModelCheckpoint,
    )
    with pytest.raises(ConfigError, match=f"{kind.__name__} monitors '{monitor}'.*{words}"):
        trainer.fit(NoTraining())


@pytest.mark.parametrize("callback", [EarlyStopping("val/los"), ModelCheckpoint(monitor="val/los")])
def test_without_a_validation_before_training_the_first_one_tells(tmp_path, callback):
    options = {"num_sanity_val_steps": 0, "val_check_interval": 1}
    with pytest.raises(ConfigError, match=r"monitors 'val/los'.*did you mean 'val/loss'"):
        fit(tmp_path, callback, **options)


def test_a_schedule_by_a_metric_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ReduceLROnPlateau monitors 'val/los'.*'val/loss'"):
        fit(tmp_path, SelfChecks(), Plateau())


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize(
    ("phase", "monitor", "meant", "num_steps"),
    [
        ("sft", "train/sft/los", "train/sft/loss", 1),
        ("reward", "train/reward/grad_nrm", "train/reward/grad_norm", 1),
        ("ppo", "train/ppo/rewrd", "train/ppo/reward", 2),
    ],
)
def test_a_misspelt_metric_of_training_is_told_after_the_first_step(
    tmp_path, folder, kind, phase, monitor, meant, num_steps
):
    module, data = build(phase, folder)
    options = {"enable_checkpointing": kind is ModelCheckpoint, "max_epochs": 1}
    trainer = phase_trainer(tmp_path, callbacks=[SelfChecks(), kind(monitor=monitor)], **options)
    with pytest.raises(ConfigError, match=f"monitors '{monitor}', .*did you mean '{meant}'"):
        trainer.fit(module, data)
    assert trainer.global_step == num_steps


def test_what_is_logged_once_enough_batches_are_summed_up_is_let_through(tmp_path, folder):
    module, data = build("sft", folder)
    monitors = EarlyStopping("train/sft/grad_norm", check_on_train_epoch_end=True)
    options = {"accumulate_grad_batches": 3, "max_epochs": 1}
    trainer = phase_trainer(tmp_path, callbacks=[SelfChecks(), monitors], **options)
    trainer.fit(module, data)
    assert trainer.global_step == 1


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping("train_late", check_on_train_epoch_end=True),
        EarlyStopping("val/sometimes", strict=False),
        ModelCheckpoint(monitor="step", mode="max"),
    ],
    ids=["by another's code", "that may be missing", "of the checkpoint itself"],
)
def test_metrics_that_come_later_are_let_through(tmp_path, callback):
    assert fit(tmp_path, callback, Late()).global_step == 2


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_metrics_that_there_are_and_those_of_training_are_let_through(tmp_path, monitor):
    trainer = fit(tmp_path, EarlyStopping(monitor=monitor, check_on_train_epoch_end=True))
    assert trainer.global_step == 2
