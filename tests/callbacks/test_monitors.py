import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_rlhf.callbacks import SelfChecks
from lit_rlhf.errors import ConfigError
from tests.support.reporting import ReportingModule, quiet_trainer


def fit(folder, callback, **changes):
    trainer = quiet_trainer(
        folder,
        callbacks=[SelfChecks(), callback],
        enable_checkpointing=isinstance(callback, ModelCheckpoint),
        **changes,
    )
    trainer.fit(ReportingModule())
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


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_metrics_that_there_are_and_those_of_training_are_let_through(tmp_path, monitor):
    trainer = fit(tmp_path, EarlyStopping(monitor=monitor, check_on_train_epoch_end=True))
    assert trainer.global_step == 2
