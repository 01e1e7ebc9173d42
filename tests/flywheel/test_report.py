"""The report names what is missing of a finished round, and what to do."""

import json
import shutil
from dataclasses import replace

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.flywheel.report import write_report
from lit_rlhf.flywheel.rounds import run_rounds
from lit_rlhf.flywheel.settings import GateConfig
from tests.flywheel.tiny_run import StandIns, tiny_settings

# What the page is made from -> the record of the step that left it.
SOURCES = {
    "promotion.json": "10-promote.json",
    "measures.json": "9-measure.json",
    "judge/report.json": "8-judge.json",
    "judged/full.jsonl": "3-collect.json",
    "judged/own.jsonl": "3-collect.json",
}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    made = tiny_settings(tmp_path, monkeypatch, rounds=1)
    run_rounds(made, lambda line: None, StandIns(), waits=False)
    return made


def refuses(settings, message):
    with pytest.raises(DataError, match=message):
        write_report(settings)


def test_what_is_gone_or_torn_is_named_and_so_is_its_step(settings):
    folder = settings.round_folder(1)
    for name, record in SOURCES.items():
        before = (folder / name).read_bytes()
        (folder / name).unlink()
        refuses(settings, rf"round-01/{name}: is gone; put it back, or delete .*round-01/{record}")
        for torn in (before[: len(before) // 2], b"\xff", b"[]\n", b"null\n"):
            (folder / name).write_bytes(torn)
            refuses(settings, rf"round-01/{name}: is torn, or not of this version.*{record}")
        (folder / name).write_bytes(before)
    for record in ("4-reward.json", "7-policy.json"):
        before = (folder / record).read_bytes()
        (folder / record).unlink()
        refuses(settings, rf"{record}: is gone; start the run again")
        (folder / record).write_bytes(before)
    shutil.rmtree(folder / "judged")
    refuses(settings, "judged/full.jsonl: is gone")


def test_what_another_version_left_is_named(settings):
    folder = settings.round_folder(1)
    for name, fields in (
        ("promotion.json", ("about_reward", "gain", "kl")),
        ("measures.json", ("raters_right",)),
    ):
        content = json.loads((folder / name).read_text())
        for field in fields:
            less = {key: value for key, value in content.items() if key != field}
            (folder / name).write_text(json.dumps(less))
            refuses(settings, f"{name}: is torn, or not of this version.*KeyError: '{field}'")
        (folder / name).write_text(json.dumps(content))
    write_report(settings)


def test_a_final_judge_that_came_later_is_named(settings):
    more = replace(settings, gate=GateConfig("reward:gate", {"last": "reward:gold"}))
    refuses(more, r"judge/report.json: .* 0 figures .*'judge': 'last'.*delete .*8-judge.json")


def test_models_that_were_deleted_are_not_needed(settings):
    for name in ("reward", "policy"):
        shutil.rmtree(settings.round_folder(1) / name)
    text = write_report(settings).read_text()
    assert text.startswith("# 1 rounds of the flywheel")
