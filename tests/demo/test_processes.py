"""Functions in processes of their own: results, errors, memory, and a process that is killed."""

import os
import signal

import pytest

from lit_rlhf.demo.processes import CleanProcesses
from lit_rlhf.errors import ConfigError, TrainingError

processes = CleanProcesses([])


def fill(mebibytes):
    return len(bytearray(b"x" * (mebibytes * 2**20))), os.getpid()


def refuse(what):
    raise ConfigError(f"{what} must be positive")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


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
