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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.evaluation.figures import Figure, sections

_FOLDER = Path(__file__).parent
HEAD = ("subject", "metric", "against", "judge", "value", "95 % interval", "n")


class PageRow(NamedTuple):
    """One prompt with a response of every side.

    Attributes:
        prompt: as text.
        texts: of each side.
        facts: of each side, short remarks such as "truncated".
        scores: of each side, one of each judge; None from judges that compare.
        verdicts: judge's place -> "0-1" (two sides, the smaller place first) -> 1 for the first
            side, 0 for the second, or None without a verdict.
    """

    prompt: str
    texts: Sequence[str]
    facts: Sequence[Sequence[str]]
    scores: Sequence[Sequence[float | None]]
    verdicts: Mapping[int, Mapping[str, float | None]]


class Page(NamedTuple):
    """All that a page shows.

    Attributes:
        title: its heading.
        sides: names of the policies, or of whatever is shown side by side.
        judges: name -> whether it compares two responses instead of scoring each.
        rows: one a prompt.
        figures: for the tables.
        pictures: caption -> PNG file.
        lineage: model -> lines.
        notes: sentences above the tables.
    """

    title: str
    sides: Sequence[str]
    judges: Mapping[str, bool]
    rows: Sequence[PageRow]
    figures: Sequence[Figure]
    pictures: Mapping[str, Path]
    lineage: Mapping[str, Sequence[str]]
    notes: Sequence[str]


def render_page(page: Page) -> str:
    """Return the page as HTML, in ASCII throughout."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(page.title),
        "STYLE": style,
        "DATA": embedded_json(_data(page)),
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


def _data(page: Page) -> dict[str, Any]:
    return {
        "sides": list(page.sides),
        "judges": [{"name": name, "compares": kind} for name, kind in page.judges.items()],
        "rows": [
            {"number": number, **row._asdict()} for number, row in enumerate(page.rows, start=1)
        ],
        "tables": [
            {"name": name, "head": list(HEAD), "rows": table_rows(figures)}
            for name, figures in sections(page.figures).items()
        ],
        "pictures": [
            {"caption": caption, "source": _data_address(path)}
            for caption, path in page.pictures.items()
        ],
        "lineage": [{"name": name, "lines": list(lines)} for name, lines in page.lineage.items()],
        "notes": list(page.notes),
    }


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data_address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
