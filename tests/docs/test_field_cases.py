"""Each test that docs/reference/field-cases.md names is there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reference" / "field-cases.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| case", "| ---"))
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_case_is_held_by_a_test_or_open(row):
    _, _, held = row
    if held == "not yet":
        return
    path, name = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`", held).groups()
    source = (TESTS / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, flags=re.MULTILINE)
