"""A run on tiny models, killed by SIGKILL ten times, ends byte for byte as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_rlhf.feedback.exchange import full_row
from lit_rlhf.feedback.store import FeedbackStore
from tests.flywheel.tiny_run import write_inputs

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("LIT_RLHF_KILL_SEED", "7"))
NUM_KILLS = 10
NUM_STEPS = 16  # of both rounds
LONGEST_S = 4.0  # behind the end of a step: most steps of tiny models take longer


def start(folder, words):
    """Start the run in a group of its own, so that its phases are killed with it at once."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_rlhf", "flywheel", "run", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder, words):
    process = start(folder, words)
    assert process.wait() == 0, (folder / "log.txt").read_text()[-4000:]


def end_state(folder):
    """Return every file of the run, byte for byte, and what the store holds.

    Left out: logs of seconds, what Lightning resumes from, and the database's own file, which has
    the time of each judgment.
    """
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "run").rglob("*"))
        if path.is_file()
        and path.name != "timings.jsonl"
        and "checkpoints" not in path.parts
        and not path.name.startswith("feedback.db")
    }
    with FeedbackStore.open(str(folder / "run" / "feedback.db")) as store:
        return files, [full_row(task) for task in store.judged_tasks()]


def num_finished(folder):
    return len(list((folder / "run").glob("round-*/[0-9]*-*.json")))


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    choose = random.Random(SEED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = write_inputs(whole)
    finish(whole, words)
    assert write_inputs(killed) == words
    steps = []
    # The last step takes no time: it could be over before a kill arrives.
    for step in sorted(choose.sample(range(NUM_STEPS - 1), NUM_KILLS)):
        process = start(killed, words)
        while num_finished(killed) < step and process.poll() is None:
            time.sleep(0.01)
        time.sleep(choose.uniform(0, LONGEST_S))
        assert process.poll() is None, (killed / "log.txt").read_text()[-4000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        steps.append(num_finished(killed))
    finish(killed, words)
    files, judged = end_state(killed)
    expected, expected_judged = end_state(whole)
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] == []
    assert judged == expected_judged
    assert len(judged) == 16
    # What is compared says something, and the kills came at different steps.
    assert sum(name.endswith("model.safetensors") for name in files) == 4
    assert num_finished(killed) == NUM_STEPS
    assert len(set(steps)) > 5
