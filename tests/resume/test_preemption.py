"""Signals, full disks and lost loggers, in processes of their own."""

import signal

import pytest

from tests.resume.test_kills import assert_equal, inputs, run_whole, server  # noqa: F401
from tests.support.fork_server import log_of
from tests.support.kill_runs import differences, job, outcome

SIGTERM = int(signal.SIGTERM)
LIMIT_S = 30.0
# Where the signal comes: in a rollout, in an update, in a validation, at the end of a batch.
PLACES = ("decoding:25", "step:6", "validation:3", "batch:3")


@pytest.fixture(scope="module")
def whole(server, inputs, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("whole")
    return {
        case: run_whole(server, case, inputs, folder / case)
        for case in ("sft", "ppo-gae-function", "ppo-gae-function-ddp")
    }


def go_on(server, inputs, folder, case, expected):  # noqa: F811
    done = server.run(job(case, inputs, folder, "--ckpt_path", "last"))
    assert set(done.statuses) == {0}, log_of(folder)
    assert_equal(outcome(folder), expected)


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_saves_and_ends_at_any_moment(server, inputs, tmp_path, whole, place):  # noqa: F811
    case = "ppo-gae-function"
    # No checkpoint but the one that SIGTERM asks for.
    rarely = "--last_checkpoint.every_n_batches=1000"
    ended = server.run(job(case, inputs, tmp_path, rarely, kill_point=place, signal_number=SIGTERM))
    assert ended.statuses == [143], log_of(tmp_path)
    assert ended.seconds < LIMIT_S
    assert "lit-rlhf: SIGTERM: saved" in log_of(tmp_path)
    assert "Traceback" not in log_of(tmp_path)
    go_on(server, inputs, tmp_path, case, whole[case])


def test_sigterm_to_one_process_ends_both(server, inputs, tmp_path, whole):  # noqa: F811
    case = "ppo-gae-function-ddp"
    ended = server.run(job(case, inputs, tmp_path, kill_point="decoding:25", signal_number=SIGTERM))
    assert ended.statuses == [143, 0], log_of(tmp_path)
    assert ended.seconds < LIMIT_S
    go_on(server, inputs, tmp_path, case, whole[case])


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1"])
def test_other_signals_save_and_end_too(server, inputs, tmp_path, whole, name):  # noqa: F811
    number = int(signal.Signals[name])
    ended = server.run(job("sft", inputs, tmp_path, kill_point="step:6", signal_number=number))
    assert ended.statuses == [128 + number], log_of(tmp_path)
    assert f"lit-rlhf: {name}: saved" in log_of(tmp_path)
    go_on(server, inputs, tmp_path, "sft", whole["sft"])


def test_a_full_disk_keeps_the_checkpoint_that_stands(server, inputs, tmp_path, whole):  # noqa: F811
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    server.run(job("sft", inputs, tmp_path, kill_point="batch:3"))
    before = checkpoint.read_bytes()
    full = server.run(job("sft", inputs, tmp_path, "--ckpt_path", "last", file_limit=100_000))
    assert full.statuses == [1]
    log = log_of(tmp_path)
    assert log.count("the checkpoint could not be written (File too large)") >= 3
    assert "the 3. failure in a row; what stood there is kept. Make room" in log
    assert "Traceback" not in log
    assert checkpoint.read_bytes() == before
    go_on(server, inputs, tmp_path, "sft", whole["sft"])


def test_a_checkpoint_that_is_missing_in_the_end_is_an_error(server, inputs, tmp_path, whole):  # noqa: F811
    """Only the last of all is not written: too late for three failures in a row."""
    rarely = "--last_checkpoint.every_n_batches=1000"
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    options += ["--trainer.val_check_interval=2"]
    ended = server.run(job("sft", inputs, tmp_path, rarely, *options, file_limit=100_000))
    assert ended.statuses == [1]
    assert "not all of its checkpoints could be written" in log_of(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(
    server,  # noqa: F811
    inputs,  # noqa: F811
    tmp_path,
):
    (tmp_path / "file").write_text("no folder")
    options = [f"--last_checkpoint.dirpath={tmp_path / 'file' / 'checkpoints'}"]
    ended = server.run(job("sft", inputs, tmp_path, *options))
    assert ended.statuses == [1]
    (error,) = [line for line in log_of(tmp_path).splitlines() if "lit-rlhf: error" in line]
    assert "checkpoints cannot be written there (Not a directory)" in error
    assert not (tmp_path / "training-started").exists()


def lose_logger(folder):
    """Let the metrics' file fail from its third row on."""
    from lit_rlhf.callbacks import csv_logger  # noqa: PLC0415

    append = csv_logger.append_whole

    def append_to_little_room(path, text):
        if path.stat().st_size > 200:
            raise OSError(28, "No space left on device")
        append(path, text)

    csv_logger.append_whole = append_to_little_room


def test_a_lost_logger_does_not_end_a_run(server, inputs, tmp_path, whole):  # noqa: F811
    patch = f"{__name__}.lose_logger"
    ended = server.run(job("sft", inputs, tmp_path, patch=patch))
    assert ended.statuses == [0], log_of(tmp_path)
    assert log_of(tmp_path).count("metrics.csv cannot be written (No space left on device)") == 1
    found = outcome(tmp_path)
    assert len(found.metrics.splitlines()) < len(whole["sft"].metrics.splitlines())
    assert found.state["state_dict"].keys() == whole["sft"].state["state_dict"].keys()
    assert_equal_states(found.state, whole["sft"].state)


def assert_equal_states(one, other):
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(one[name], other[name]) == []
