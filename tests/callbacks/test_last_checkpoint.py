"""When states are saved; that they resume exactly stands in tests/resume."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.callbacks import LastCheckpoint
from lit_rlhf.callbacks.preemption import SigtermWatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from tests.support.reporting import ReportingModule, quiet_trainer

# Of the module that is trained: loaders without workers, which Lightning cannot resume.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before"
)


def fit(folder, *callbacks, **options):
    trainer = quiet_trainer(
        folder,
        callbacks=list(callbacks),
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        **options,
    )
    trainer.fit(ReportingModule())
    return trainer


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_a_state_is_saved_by_count_and_in_the_end(tmp_path):
    fit(tmp_path, LastCheckpoint(None, 3), max_epochs=2, limit_val_batches=0)
    # After batch 3 of 4, then at the end.
    assert step_of(tmp_path / "checkpoints" / "last-previous.ckpt") == 3
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_a_state_is_saved_by_time(tmp_path):
    fit(tmp_path, LastCheckpoint(1e-9), max_epochs=2, limit_val_batches=0)
    assert step_of(tmp_path / "checkpoints" / "last-previous.ckpt") == 3


def test_the_end_of_the_run_is_written_once(tmp_path):
    policy = ModelCheckpoint(tmp_path / "saved", "policy", save_on_train_epoch_end=True)
    fit(tmp_path, policy, LastCheckpoint(None), max_epochs=1, limit_val_batches=0)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.samefile(tmp_path / "saved" / "policy.ckpt")
    # Whose state has the rows of the log, too.
    content = torch.load(last, weights_only=True)
    assert content["callbacks"]["LastCheckpoint"] == {"num_rows": 0, "next_row": None}


def test_a_fast_run_of_a_developer_leaves_nothing(tmp_path):
    fit(tmp_path, LastCheckpoint(None, 1), fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_minutes": 0}, "last_checkpoint.every_n_minutes is 0; expected more than 0"),
        ({"every_n_batches": -1}, "last_checkpoint.every_n_batches is -1"),
        ({"grace_s": 0.0}, "last_checkpoint.grace_s is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LastCheckpoint(**settings)


def test_sigterm_counts_once():
    calls = []
    watch = SigtermWatch(60.0, lambda: calls.append("asked"), lambda: "")
    for _ in range(2):
        watch._handle(15, None)
    watch.stand_down()
    assert watch.has_fired
    assert calls == ["asked"]
