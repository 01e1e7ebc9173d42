"""The commands of the loop, and the processes in which they run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_rlhf.demo import loop
from lit_rlhf.demo.loop import MARKER, SCALES, run_loop
from lit_rlhf.errors import ConfigError, TrainingError
from tests.support.waiting import has_ended, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(monkeypatch):
    """Run no command; return the words of each."""
    words = []

    def run(title, command):
        words.append(command)
        return {"seconds": 1.0, "peak_memory_gib": 2.0}

    monkeypatch.setattr(loop, "_run", run)
    monkeypatch.setattr(loop, "choose_precision", lambda: "32-true")
    return words


def test_what_ran_is_returned(tmp_path, asked):
    run = run_loop(SCALES["smoke"], tmp_path / "run", seed=5)
    assert [shlex.split(command)[1:] for command in run["commands"]] == asked
    assert (run["scale"], run["seed"], run["precision"]) == ("smoke", 5, "32-true")
    assert run["phases"][3] == {"name": "PPO", "seconds": 1.0, "peak_memory_gib": 2.0}


def test_only_what_a_demonstration_made_is_replaced(tmp_path, asked):
    run = tmp_path / "run"
    run_loop(SCALES["smoke"], run, seed=1)
    (run / "ppo").mkdir()
    (run / "mine").mkdir()
    run_loop(SCALES["smoke"], run, seed=1)
    assert sorted(path.name for path in run.iterdir()) == [MARKER, "mine"]
    (run / MARKER).unlink()
    with pytest.raises(ConfigError, match="no demonstration made it"):
        run_loop(SCALES["smoke"], run, seed=1)
    assert len(asked) == 2 * len(loop.COMMANDS)


def test_time_and_memory_of_a_command(capfd):
    measured = loop._run("help", ["sft", "--help"])
    assert 0.1 < measured["seconds"] < 300
    assert 0.01 < measured["peak_memory_gib"] < 4
    assert "usage: lit-rlhf sft" in capfd.readouterr().out


def test_a_command_that_fails_ends_the_loop(capfd, monkeypatch, tmp_path):
    with pytest.raises(TrainingError, match="PPO: its command failed"):
        loop._run("PPO", ["ppoo", "fit"])
    assert "no phase or command 'ppoo'" in capfd.readouterr().err
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(TrainingError, match="PPO: its process was killed by signal 9"):
        loop._run("PPO", ["ppo", "fit"])


def test_a_command_ends_when_the_demonstration_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    (tmp_path / "stays.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    words = ["evaluate", "policies", "responses.jsonl", "--judge=function:stays.score"]
    script = f"from lit_rlhf.demo.loop import _run; _run('policies', {words!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    pid = wait_for(lambda: int(pid_file.read_text()) if pid_file.exists() else None)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: has_ended(pid))
