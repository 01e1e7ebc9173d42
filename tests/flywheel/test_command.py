"""`lit-rlhf flywheel`: the command around the rounds."""

import sqlite3

import pytest
import sqlalchemy as sa

from lit_rlhf import child_command, phase_cli
from lit_rlhf.cli import main
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.store import FeedbackStore
from tests.flywheel.tiny_run import StandIns, write_inputs


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child_command, "run_command", StandIns())
    # The parser does not see through the hook that checks shapes: tests/configs has it.
    monkeypatch.setattr(phase_cli, "check_options", lambda phase, options: None)
    people = {"class_path": "People", "init_args": {"poll_s": 0.01}}
    return write_inputs(tmp_path, labeler=people, rounds=1, slots=1)


def test_with_people_a_run_ends_says_what_is_missing_and_goes_on(words, capsys):
    assert main(["flywheel", "run", *words, "--no-wait"]) == 1
    shown = capsys.readouterr()
    assert "8 judgments of 8 tasks are missing; run the same command again" in shown.err
    assert main(["flywheel", "status", *words]) == 0
    shown = capsys.readouterr().out
    assert "round 1: sample finished, choose finished, collect under way, reward to do" in shown
    assert shown.endswith("wanted: 8 judgments; made: 0\n")
    assert main(["flywheel", "report", *words]) == 1
    assert "no round is finished yet" in capsys.readouterr().err
    with FeedbackStore.open("run/feedback.db") as store:
        for task in store.claim("ana", count=8):
            store.submit(task.id, Judgment("tie", labeler="ana", id=f"j{task.id}"))
    assert main(["flywheel", "run", *words]) == 0
    assert capsys.readouterr().out.endswith("run/report.md\n")
    assert main(["flywheel", "report", *words]) == 0


def test_a_store_that_is_gone_is_one_error(words, capsys, monkeypatch):
    def gone(*_, **__):
        raise sa.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("the server is gone"))

    monkeypatch.setattr(FeedbackStore, "add_tasks", gone)
    assert main(["flywheel", "run", *words, "--no-wait"]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.endswith(
        "feedback.db: the server is gone; the same command goes on when it answers again"
    )


def test_help_and_a_wrong_command(capsys):
    assert main(["flywheel"]) == 0
    assert "usage: lit-rlhf flywheel {run,status,report}" in capsys.readouterr().out
    assert main(["flywheel", "spin"]) == 1
    assert "no command 'spin': run, status, report" in capsys.readouterr().err
