import os
import signal
import time

import lightning.pytorch as pl
import pytest

from lit_rlhf.callbacks import RankWatchCallback
from lit_rlhf.callbacks.rank_watch import lost_process
from lit_rlhf.errors import ConfigError
from tests.support.phase_runs import run, write_inputs
from tests.support.two_processes import start_processes

# Far less than the half hour that collectives wait for each other.
LIMIT_S = 40


class Misfortune(pl.Callback):
    """What happens to a process when its second batch begins."""

    def __init__(self, rank, event):
        self.rank = rank
        self.event = event

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != 1:
            return
        if trainer.global_rank != self.rank:
            if self.event == "killed while the other is busy":
                time.sleep(600)
        elif self.event.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.event == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.event == "fails":
            raise ValueError("this row\nmakes no sense")


def train(folder, rank, event):
    os.dup2(os.open(folder / f"stderr-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), 2)
    outcome = folder / f"outcome-{os.environ['RANK']}"
    callbacks = [RankWatchCallback(timeout_s=10), Misfortune(rank, event)]
    try:
        for _ in range(2 if event == "nothing" else 1):
            run("sft", folder, max_batches=3, strategy="ddp", devices=2, callbacks=callbacks)
    except Exception as error:
        outcome.write_text(f"{type(error).__name__}, lost: {lost_process(error)}")
        raise SystemExit(1) from error
    outcome.write_text("done")


def run_with(folder, rank, event):
    """Return the exit codes of both processes and what each left behind: outcome and messages."""
    write_inputs(folder)
    processes = start_processes(2, train, folder, rank, event)
    deadline = time.monotonic() + LIMIT_S
    try:
        for number, process in enumerate(processes):
            if event == "stopped" and number == rank:
                continue
            process.join(max(0.1, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    outcomes = [folder / f"outcome-{number}" for number in range(2)]
    texts = [path.read_text() if path.exists() else "" for path in outcomes]
    return codes, texts, [(folder / f"stderr-{number}").read_text() for number in range(2)]


def test_a_good_end_is_no_loss(tmp_path):
    codes, outcomes, messages = run_with(tmp_path, 0, "nothing")
    assert codes == [0, 0]
    assert outcomes == ["done", "done"]
    assert not any("lit-rlhf: error" in message for message in messages)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_which_names_it(tmp_path, victim):
    codes, outcomes, _ = run_with(tmp_path, victim, "killed")
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    assert outcomes[victim] == ""
    assert f"lost: rank {victim} (process " in outcomes[1 - victim]
    assert "is gone: killed" in outcomes[1 - victim]


def test_a_process_that_talks_to_nobody_notices_too(tmp_path):
    codes, outcomes, messages = run_with(tmp_path, 1, "killed while the other is busy")
    assert codes == [1, -signal.SIGKILL]
    assert outcomes == ["", ""]
    assert "lit-rlhf: error: rank 1 (process " in messages[0]
    assert "rank 0 ends, too" in messages[0]


def test_an_error_is_told_to_the_others(tmp_path):
    codes, outcomes, _ = run_with(tmp_path, 1, "fails")
    assert codes == [1, 1]
    assert outcomes[1] == "ValueError, lost: None"
    assert outcomes[0].endswith("lost: rank 1 failed: ValueError: this row")


@pytest.mark.slow
def test_a_process_that_stands_still_counts_as_lost(tmp_path):
    codes, _, messages = run_with(tmp_path, 1, "stopped")
    assert codes[0] == 1
    assert "gave no sign of life for 10 s; rank 0 ends, too" in messages[0]


def test_too_short_a_limit_is_refused():
    with pytest.raises(ConfigError, match=r"rank_watch\.timeout_s is 2; expected >= 10, or null"):
        RankWatchCallback(timeout_s=2)
