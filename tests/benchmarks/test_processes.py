"""Functions in processes of their own: results, errors, memory, and a process that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.overoptimization.processes import CleanProcesses
from lit_rlhf.errors import ConfigError, TrainingError
from tests.support.waiting import has_ended, wait_for

processes = CleanProcesses([])


def fill(mebibytes):
    return len(bytearray(b"x" * (mebibytes * 2**20))), os.getpid()


def refuse(what):
    raise ConfigError(f"{what} must be positive")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stay(file):
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def test_each_call_has_a_process_and_a_peak_of_its_own():
    (length, first), large = processes.run("large", fill, 256)
    assert length == 256 * 2**20
    (_, second), small = processes.run("small", fill, 1)
    assert len({first, second, os.getpid()}) == 3
    assert large - small == pytest.approx(0.5, abs=0.1)  # the bytes and their copy


def test_an_error_arrives_as_it_was_raised():
    with pytest.raises(ConfigError, match="target must be positive"):
        processes.run("PPO", refuse, "target")


def test_a_killed_process_is_an_error_that_names_the_phase():
    with pytest.raises(TrainingError, match="reward model: its process was killed"):
        processes.run("reward model", die)


def test_a_process_ends_when_the_one_that_asked_for_it_is_killed(tmp_path):
    file = tmp_path / "pid"
    script = "from tests.benchmarks.test_processes import processes, stay\n"
    script += f"if __name__ == '__main__': processes.run('sft', stay, {str(file)!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    pid = wait_for(lambda: int(file.read_text()) if file.exists() and file.read_text() else None)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: has_ended(pid))
