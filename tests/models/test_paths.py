import pytest

from tests.models.architecture_table import ARCHITECTURES, PAGE, QUICK, line_of

# Some architectures' own code uses what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_a_model_is_what_the_page_says(name):
    page = PAGE.read_text(encoding="utf-8")
    assert line_of(name) in page.splitlines()


def test_nothing_differs_from_transformers():
    assert "DIFFER" not in PAGE.read_text(encoding="utf-8")
