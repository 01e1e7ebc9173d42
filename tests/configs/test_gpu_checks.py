"""The checks of a GPU prove themselves on a CPU, at tiny sizes."""

import json

import pytest
import torch

from benchmarks.gpu import __main__ as script
from benchmarks.gpu.checks import CHECKS, Check, Found
from benchmarks.gpu.page import Outcome, write_page


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_runs_and_passes_on_a_cpu(name, tmp_path):
    outcome = script.run_check(name, "cpu", tmp_path)
    assert outcome.status == "pass", outcome


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_on_a_gpu(name, tmp_path):
    outcome = script.run_check(name, "cuda", tmp_path)
    assert outcome.status == "pass", outcome


def test_an_error_and_a_false_statement_fail_and_a_reason_skips(tmp_path, monkeypatch):
    def broken(device, folder):
        raise RuntimeError("CUDA error: an illegal memory access")

    checks = {
        "broken": Check(broken, 1),
        "wrong": Check(lambda *_: Found({"one is two": False}), 1),
        "away": Check(lambda *_: Found(skipped="no torchao"), 1),
    }
    monkeypatch.setattr(script, "CHECKS", checks)
    outcomes = [script.run_check(name, "cpu", tmp_path) for name in checks]
    assert [one.status for one in outcomes] == ["fail", "fail", "skipped"]
    assert "illegal memory access" in outcomes[0].detail
    assert outcomes[1].detail == "not so: one is two"


def test_without_time_the_rest_is_skipped_and_the_page_is_whole(tmp_path, capsys):
    outcomes = script.run_all("cpu", seconds=1.0)
    assert [outcome.status for outcome in outcomes] == ["skipped"] * len(CHECKS)
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end of measured -->\nafter\n")
    results = tmp_path / "r.json"
    write_page([Outcome("a", "pass", "", {"ms": 1.25}, 1.0), *outcomes], "cpu", results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `a` | pass | ms 1.25 |" in text
    saved = json.loads(results.read_text())
    assert len(saved["checks"]) == 1 + len(CHECKS)
