"""Counts the bad inputs of the tables in tests/data and tests/configs, and those told clearly.

The tables run with `make test` already; here they run once more, to leave their count in
`runs/proofs`, from which docs/robustness.md is written.
"""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.proofs.table import Claim, write_claims

ROOT = Path(__file__).parents[2]
TABLES = ("tests/data/test_bad_rows.py", "tests/configs/test_bad_settings.py")
# The tests whose every case is a bad input.
NAMES = (
    "test_a_bad_row_is_named_by_file_and_line",
    "test_a_bad_file_is_named",
    "test_a_source_that_holds_no_rows_is_named",
    "test_a_bad_setting_is_one_error_that_names_it",
)
FEWEST = 150


@pytest.mark.slow
def test_every_bad_input_is_one_clear_error(tmp_path):
    report = tmp_path / "report.xml"
    # A call of its own: the config parser does not see through jaxtyping's import hook.
    options = ["--jaxtyping-packages=", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    selected = ["-k", " or ".join(NAMES)]
    command = [sys.executable, "-m", "pytest", *TABLES, *options, *selected]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    cases = list(ET.parse(report).getroot().iter("testcase"))
    held = sum(len(case) == 0 for case in cases)  # one that failed has a child that says so
    note = "rows, files and settings of all phases, before any step"
    claim = "a bad input is one error that names what, where and what to do, without traceback"
    write_claims("bad-inputs", [Claim(claim, len(cases), held, None, note)])
    assert len(cases) >= FEWEST
    assert held == len(cases), done.stdout[-2000:]
