"""When states are saved; that they resume exactly stands in tests/resume."""

import os
import signal
from contextlib import nullcontext

import pytest
from lightning.pytorch import Callback

from lit_rlhf.callbacks import LastCheckpoint, last_checkpoint
from lit_rlhf.callbacks.last_checkpoint import SignalWatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import checkpoint_io
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


def saved_steps(monkeypatch):
    """Return a list to which the step of each state is added as it is written."""
    steps = []
    monkeypatch.setattr(
        checkpoint_io, "write_checkpoint", lambda state, path: steps.append(state["global_step"])
    )
    return steps


def test_a_state_is_saved_by_count_and_in_the_end(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    fit(tmp_path, LastCheckpoint(None, 3), max_epochs=2, limit_val_batches=0)
    assert steps == [3, 4]


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    class Second(Callback):
        def on_train_start(self, trainer, pl_module):
            with pytest.raises(ConfigError, match="another run is writing there"):
                fit(tmp_path, LastCheckpoint(), max_epochs=1, limit_val_batches=0)
            fit(tmp_path / "other", LastCheckpoint(), max_epochs=1, limit_val_batches=0)

    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise ValueError("broken off")

    options = {"max_epochs": 1, "limit_val_batches": 0}
    with pytest.raises(ValueError, match="broken off"):
        fit(tmp_path, LastCheckpoint(), Second(), Fails(), **options)
    fit(tmp_path, LastCheckpoint(), **options)  # the folder is free again
    assert list(tmp_path.rglob(".lock")) == []


@pytest.mark.parametrize("is_broken_off", [False, True])
def test_the_folder_is_kept_until_the_last_checkpoint_is_written(tmp_path, is_broken_off):
    """By a strategy that writes while training goes on."""
    locks = []

    class Writes(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.strategy.finish_writing = lambda: locks.append(list(tmp_path.rglob(".lock")))

        def on_train_batch_end(self, *_):
            if is_broken_off:
                raise ValueError("broken off")

    options = {"max_epochs": 1, "limit_val_batches": 0}
    with pytest.raises(ValueError, match="broken off") if is_broken_off else nullcontext():
        fit(tmp_path, LastCheckpoint(), Writes(), **options)
    assert [len(found) for found in locks] == [1]
    assert list(tmp_path.rglob(".lock")) == []


def test_a_state_is_saved_by_time(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    fit(tmp_path, LastCheckpoint(1e-9), max_epochs=2, limit_val_batches=0)
    assert steps == [1, 2, 3, 4]


def test_between_the_epochs_of_a_run_that_counts_steps_nothing_is_saved(tmp_path, monkeypatch):
    """Lightning, asked to resume there, ends the epoch once more and logs other steps."""
    steps = saved_steps(monkeypatch)
    fit(tmp_path, LastCheckpoint(1e-9), max_epochs=-1, max_steps=4, limit_val_batches=0)
    assert steps == [1, 3, 4]


def test_waiting_gradients_are_not_left_behind(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    last = LastCheckpoint(1e-9)
    fit(tmp_path, last, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=2)
    assert steps == [1]  # of two batches, at the end


def test_a_fast_run_of_a_developer_leaves_nothing(tmp_path):
    fit(tmp_path, LastCheckpoint(None, 1), fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_minutes": 0}, "last_checkpoint.every_n_minutes is 0; it must be above 0"),
        ({"every_n_batches": -1}, "last_checkpoint.every_n_batches is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LastCheckpoint(**settings)


def test_the_first_signal_counts():
    watch = SignalWatch()
    watch.install()
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    finally:
        watch.restore()
    assert watch.received is signal.SIGTERM
    assert watch.status == 143


def test_a_signal_that_others_handle_or_ignore_is_left_to_them():
    handled = []
    before = [
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.signal(signal.SIGUSR1, lambda *_: handled.append("theirs")),
    ]
    watch = SignalWatch()
    watch.install()
    try:
        for number in (signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
    finally:
        watch.restore()
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    assert watch.received is None
    assert handled == ["theirs"]


def test_ctrl_c_once_more_ends_at_once(monkeypatch):
    # As in a terminal: who starts the tests in the background may have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = SignalWatch()
    watch.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # by a launcher, at once
        monkeypatch.setattr(last_checkpoint, "_AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        watch.restore()
        signal.signal(signal.SIGINT, before)
    assert watch.status == 130
