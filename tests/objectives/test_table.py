import pytest

from tests.objectives.table import ERROR, PAGE, page


def test_the_page_of_objectives_is_up_to_date():
    """But for the last digits of errors, which depend on the machine."""
    written = PAGE.read_text(encoding="utf-8")
    assert ERROR.sub("", written) == ERROR.sub("", page()), "run python -m tests.objectives.table"


def test_the_errors_on_the_page_are_within_bounds():
    rows = (
        PAGE.read_text(encoding="utf-8")
        .partition("## Preference losses")[2]
        .partition("## Options")[0]
    )
    found = [ERROR.findall(row) for row in rows.splitlines() if row.startswith("| `")]
    assert found
    for *_, in_float64, in_float32 in found:  # a formula may have such numbers, too
        assert float(in_float64) <= 1e-10
        assert float(in_float32) <= 1e-5


@pytest.mark.parametrize("package", ["preference", "reward", "advantage", "policy"])
def test_a_loss_is_a_short_file(package):
    files = list((PAGE.parents[2] / "lit_rlhf/objectives" / package).glob("*.py"))
    longest = max(files, key=lambda file: len(file.read_text().splitlines()))
    assert len(files) > 4
    assert len(longest.read_text().splitlines()) <= 150, longest
