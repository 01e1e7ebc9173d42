"""What the checks found, as JSON and in the documentation."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch

_START, _END = "<!-- measured -->", "<!-- end of measured -->"


class Outcome(NamedTuple):
    """What a check found.

    Attributes:
        name: of the check.
        status: "pass", "fail" or "skipped".
        detail: why, where it did not pass.
        figures: by name.
        seconds: that it took.
    """

    name: str
    status: str
    detail: str
    figures: dict[str, Any]
    seconds: float


def write_page(outcomes: list[Outcome], device: str, results: Path, page: Path) -> None:
    """Write the JSON, and the figures between the marks of the page.

    Args:
        outcomes: of all checks.
        device: on which.
        results: the JSON.
        page: has the two marks.
    """
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
    }
    results.parent.mkdir(exist_ok=True)
    content = {"machine": machine, "checks": [outcome._asdict() for outcome in outcomes]}
    results.write_text(json.dumps(content, indent=1) + "\n")
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_START}\n{_table(outcomes, machine)}{_END}{after}", encoding="utf-8")


def _table(outcomes: list[Outcome], machine: dict[str, Any]) -> str:
    lines = [
        f"{machine['device']}, torch {machine['torch']}, cuDNN {machine['cudnn']}.",
        "",
        "| check | outcome | figures |",
        "| --- | --- | --- |",
    ]
    for outcome in outcomes:
        figures = ", ".join(f"{name} {_short(value)}" for name, value in outcome.figures.items())
        status = f"{outcome.status}: {outcome.detail}" if outcome.detail else outcome.status
        lines.append(f"| `{outcome.name}` | {status.replace('|', '/')} | {figures} |")
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
