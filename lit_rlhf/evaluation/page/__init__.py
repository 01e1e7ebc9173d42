"""The page on which samples are browsed: one file, without a network, safe against its content.

What comes from models, files and users enters as JSON, in which no character can end the script
element, and is put on the page as text, never as markup. The content security policy allows this
page's own script and style by their hashes, and nothing else: no event handler, no other script,
no request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.figures import Figure, Report, sections
from lit_rlhf.models.lineage import render_lineage

_FOLDER = Path(__file__).parent
HEAD = ("subject", "metric", "against", "judge", "value", "95 % interval", "n")


def render_page(report: Report, folder: Path, num_samples: int) -> str:
    """Return the page of a report as HTML, in ASCII throughout.

    Args:
        report: what was found.
        folder: with its pictures.
        num_samples: shown, from the first.
    """
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(report.title),
        "STYLE": style,
        "DATA": embedded_json(_data(report, folder, num_samples)),
        "SCRIPT": script,
    }
    # Cut at the marks first: a text that holds "@SCRIPT@" must not be replaced in its turn.
    pieces = (_FOLDER / "page.html").read_text(encoding="utf-8").split("@")
    return "".join(parts.get(piece, piece) for piece in pieces)


def embedded_json(value: object) -> str:
    """Return JSON that is safe in a script element: ASCII, without `<`, `>` and `&`.

    Raises:
        ValueError: a number is not finite, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def table_rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Return figures as the cells under `HEAD`."""
    return [
        [
            figure.subject,
            figure.metric.replace("_", " "),
            figure.against,
            figure.judge,
            *figure.shown(),
            str(figure.estimate.n),
        ]
        for figure in figures
    ]


def _data(report: Report, folder: Path, num_samples: int) -> dict[str, Any]:
    rows, notes = report.rows[:num_samples], list(report.notes)
    if len(rows) < len(report.rows):
        notes.append(f"The page has the first {num_samples} of {len(report.rows)} samples.")
    return {
        "sides": list(report.sides),
        "judges": [{"name": name, "compares": kind} for name, kind in report.judges.items()],
        "rows": [{"number": number, **row._asdict()} for number, row in enumerate(rows, start=1)],
        "tables": [
            {"name": name, "head": list(HEAD), "rows": table_rows(figures)}
            for name, figures in sections(report.figures).items()
        ],
        "pictures": [
            {"caption": caption, "source": _data_address(folder / name)}
            for caption, name in report.pictures.items()
        ],
        "lineage": [
            {"name": name, "lines": list(render_lineage(lineage))}
            for name, lineage in report.lineage.items()
        ],
        "notes": notes,
    }


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data_address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
