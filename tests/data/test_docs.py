"""The rows shown in docs/data.md are read as it says."""

import json
import re
from pathlib import Path

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import (
    judged_pairs,
    parse_comparison,
    parse_demonstration,
    parse_judgment,
    parse_prompt,
    parse_unpaired,
)
from lit_rlhf.feedback.steps import parse_steps

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
PARSERS = {
    "demonstration": parse_demonstration,
    "judgment": parse_judgment,
    "prompt": parse_prompt,
    "unpaired": parse_unpaired,
    "steps": parse_steps,
}
EXAMPLES = [
    (kind, line)
    for kind, block in re.findall(r"```json (\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_all_kinds_are_shown():
    assert {kind for kind, _ in EXAMPLES} == set(PARSERS)


@pytest.mark.parametrize(("kind", "line"), EXAMPLES)
def test_an_example_is_read(kind, line):
    PARSERS[kind](json.loads(line), "docs/data.md")


def test_the_probabilities_that_the_page_names():
    (line,) = (line for _, line in EXAMPLES if '"ratings"' in line)
    pairs = {
        (pair.chosen, pair.rejected): pair.probability
        for pair in judged_pairs(parse_judgment(json.loads(line), "docs/data.md"))
    }
    assert pairs == {(0, 2): 1.0, (1, 0): 0.75, (1, 2): 1.0}


def test_the_error_that_the_page_shows():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.5}
    with pytest.raises(DataError) as caught:
        parse_comparison(row, "ratings.jsonl:3")
    assert str(caught.value) in PAGE
