"""Commands in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_rlhf.child_command import run_command
from lit_rlhf.errors import TrainingError
from tests.support.waiting import has_ended, wait_for

ROOT = Path(__file__).parents[1]


def test_time_and_memory_of_a_command(capfd):
    measured = run_command("help", ["sft", "--help"])
    assert 0.1 < measured.seconds < 300
    assert 0.01 < measured.peak_memory_gib < 4
    assert "usage: lit-rlhf sft" in capfd.readouterr().out


def test_a_command_that_fails_is_an_error(capfd, monkeypatch, tmp_path):
    with pytest.raises(TrainingError, match="PPO: its command failed"):
        run_command("PPO", ["ppoo", "fit"])
    assert "no phase or command 'ppoo'" in capfd.readouterr().err
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(TrainingError, match="PPO: its process was killed by signal 9"):
        run_command("PPO", ["ppo", "fit"])


def test_a_command_ends_when_its_parent_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    (tmp_path / "stays.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    words = ["evaluate", "policies", "responses.jsonl", "--judge=function:stays.score"]
    script = f"from lit_rlhf.child_command import run_command; run_command('policies', {words!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    pid = wait_for(lambda: int(pid_file.read_text()) if pid_file.exists() else None)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: has_ended(pid))
