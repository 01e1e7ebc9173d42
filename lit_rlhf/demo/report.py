"""Write the demonstration's report.

`write_report` leaves a folder with `report.json` (everything, as `report_schema` describes it),
`report.md` (the same for people) and three pictures, which `report.md` names by relative path, so
the folder can be moved.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rlhf.demo.markdown import render_markdown
from lit_rlhf.demo.pictures import draw_pictures
from lit_rlhf.demo.report_schema import Report, parse_report


def write_report(report: Report | Mapping[str, Any], folder: Path) -> Path:
    """Write the report's files.

    Args:
        report: a `Report`, or the plain data of one.
        folder: where; made when missing, files of the same names are replaced.

    Returns:
        The path of `report.md`.
    """
    checked = report if isinstance(report, Report) else parse_report(report)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(
        _without_nan(dataclasses.asdict(checked)), indent=2, ensure_ascii=False, allow_nan=False
    )
    # First of all the figures: a picture that fails must not cost them.
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    pictures = draw_pictures(checked, folder)
    path = folder / "report.md"
    path.write_text(render_markdown(checked, pictures), encoding="utf-8")
    return path


def _without_nan(value: object) -> object:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
