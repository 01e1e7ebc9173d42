"""docs/reference/objectives.md, made of the docstrings and the tests' oracles.

`python -m tests.objectives.table` writes the page.
"""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import torch

from tests.objectives.preference.cases import CASES, golden, make_pairs, random_logprobs

PAGE = Path(__file__).parents[2] / "docs/reference/objectives.md"
ERROR = re.compile(r"1e-\d+")

_HEAD = """\
# Objectives

Every preference loss of `lit-rlhf dpo`: formula, source, options and what other libraries do. \
Choose one by `--model.loss NAME` or by its file in `configs/loss/`; \
[DPO's page](../methods/dpo.md#which-loss) says which one to try. This page is written by \
`python -m tests.objectives.table`, and a test fails where it is not up to date.

- `policy_chosen` and the like are log-probabilities, summed over the tokens of a response. \
`x` and `y` are log-ratios to the reference, or as the row says.
- `probability` is the share of judgments for the first response. A loss that takes no soft labels \
refuses pairs of another probability than 1: add `--data.aggregation Majority`.
- The error is the largest difference from a separate float64 calculation by the paper, rounded up \
to a power of ten, in float64 and in float32: absolute, or relative where the loss is above 1.
"""


def paragraphs(kind):
    """Return the paragraphs of a class's docstring, each in one line."""
    text = inspect.getdoc(kind).partition("Attributes:")[0].partition("Raises:")[0]
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def said(kind, beginning):
    """Return the paragraph that begins so."""
    (found,) = [part for part in paragraphs(kind) if part.startswith(beginning)]
    return found


def formula(kind):
    """Return the formula, with what its symbols are in front of it."""
    parts = paragraphs(kind)
    place = parts.index(said(kind, "`loss ="))
    before = parts[place - 1] if parts[place - 1].startswith("With ") else ""
    return f"{before} {parts[place]}".strip()


def meaning(kind, name):
    """Return what the docstring says of an option."""
    attributes = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n    (?=\w+: )", "\n" + attributes)
    (found,) = [" ".join(e.split()) for e in entries if e.startswith(f"{name}: ")]
    return found.partition(": ")[2]


def errors(cases):
    """Return the largest errors against the oracles, in float64 and float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        largest = 0.0
        for case in cases:
            pairs = make_pairs(random_logprobs(64, dtype), case.loss)
            expected = torch.tensor(golden(case, pairs), dtype=torch.float64)
            off = (case.loss(pairs).losses.double() - expected).abs()
            largest = max(largest, float((off / expected.abs().clamp(min=1.0)).max()))
        found.append(f"1e-{-math.ceil(math.log10(max(largest, 1e-17)))}")
    return ", ".join(found)


def page():
    """Return the page."""
    torch.manual_seed(0)
    kinds = sorted({type(case.loss) for case in CASES}, key=lambda kind: kind.__name__.lower())
    losses, options, peers = [], [], []
    for kind in kinds:
        cases = [case for case in CASES if type(case.loss) is kind]
        name, loss = kind.__name__, cases[0].loss
        soft = "yes" if loss.takes_soft_labels else "no"
        reads = "yes" if loss.requires_reference else "no"
        if name == "WeightedSum":
            soft = reads = "as its losses"
        source = said(kind, "Source:").removeprefix("Source: ")
        losses.append(
            f"| `{name}` | {paragraphs(kind)[0]} {formula(kind)} | {source} | {soft} | {reads} | "
            f"{errors(cases)} |"
        )
        peers.append(f"| `{name}` | {said(kind, 'Peers:').removeprefix('Peers: ')} |")
        for field in dataclasses.fields(kind):
            default = f"`{field.default}`"
            if isinstance(field.default, bool):
                default = default.lower()
            elif field.default is dataclasses.MISSING:
                default = "required"
            options.append(f"| `{name}.{field.name}` | {default} | {meaning(kind, field.name)} |")
    table = "\n".join
    return (
        f"{_HEAD}\n## Losses\n\n"
        "| loss | what it does | source | soft labels | reference | largest error |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{table(losses)}\n\n"
        f"## Options\n\n| option | default | meaning |\n| --- | --- | --- |\n{table(options)}\n\n"
        f"## What other libraries do\n\n| loss | elsewhere |\n| --- | --- |\n{table(peers)}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
