"""The command line around the phases; what the phases say stands in tests/configs."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from lit_rlhf.cli import PHASES, main
from lit_rlhf.errors import CheckpointError

HELP_PROGRAM = """
import sys, time
from lit_rlhf.cli import main
assert main(["--help"]) == 0
heavy = {"torch", "lightning", "transformers", "numpy"} & sys.modules.keys()
assert not heavy, heavy
assert time.process_time() < 1.0, time.process_time()
"""


def test_help_is_quick_and_imports_nothing_heavy():
    run = subprocess.run(
        [sys.executable, "-c", HELP_PROGRAM], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for name in (*PHASES, "demo", "evaluate", "chat", "lineage"):
        assert f"\n  {name} " in run.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_shown_when_nothing_is_asked(capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: lit-rlhf")


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-rlhf {version('lit-rlhf')}\n"


def test_an_unknown_phase_is_named_beside_those_that_there_are(capsys):
    assert main(["pppo", "fit"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for name in ("'pppo'", *PHASES, "demo", "lineage"):
        assert name in printed.err


def test_an_error_is_one_line(capsys, tmp_path):
    assert main(["lineage", str(tmp_path / "no.ckpt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lit-rlhf: error: {tmp_path}/no.ckpt: a checkpoint only continues")
    assert error.count("\n") == 1


def test_a_traceback_is_there_for_who_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_RLHF_TRACEBACK", "1")
    with pytest.raises(CheckpointError):
        main(["lineage", str(tmp_path / "no")])


def test_a_reader_that_has_read_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lit_rlhf", "--help"]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")
