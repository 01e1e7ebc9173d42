"""The commands of the loop."""

import shlex

import pytest

from lit_rlhf.child_command import Usage
from lit_rlhf.demo import loop
from lit_rlhf.demo.loop import MARKER, SCALES, run_loop
from lit_rlhf.errors import ConfigError


@pytest.fixture
def asked(monkeypatch):
    """Run no command; return the words of each."""
    words = []

    def run(title, command):
        words.append(command)
        return Usage(1.0, 2.0)

    monkeypatch.setattr(loop, "run_command", run)
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
