"""The plain code that the documentation shows computes what the fast path does."""

import re
from pathlib import Path

import pytest
import torch

from lit_rlhf.models import PolicyModel
from tests.models.examples import lively_model, random_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "concepts" / "fast-paths.md").read_text(encoding="utf-8")


def shown_function():
    """Return the function of the page's Python block."""
    (code,) = re.findall(r"```python\n# plain_logprobs.py\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {}
    exec(code, names)
    return names["plain_logprobs"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_plain_logprobs_are_those_of_the_policy(temperature):
    model = lively_model("llama")
    rows = random_rows([3, 4, 2], [5, 2, 7])
    with torch.no_grad():
        plain = shown_function()(model, rows, temperature)
        fast = PolicyModel(model)(rows, temperature=temperature).logprobs
    assert (plain[rows.response_mask] < 0).all()
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_the_named_tests_are_there():
    folder = ROOT / "tests"
    for cell in re.findall(r"\| (`tests/[^|]*) \|\n", PAGE):
        for name in re.findall(r"`([^`]*)`", cell):
            found = list(folder.rglob(Path(name).name))
            assert found, name
