"""A report in every form: JSON, Markdown, CSV, samples, pictures and the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.figures import Figure, sections
from lit_rlhf.evaluation.page import HEAD, Page, PageRow, render_page, table_rows
from lit_rlhf.markdown import markdown_cell, visible
from lit_rlhf.models.lineage import Lineage, render_lineage, versions
from lit_rlhf.whole_files import write_text_whole


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        title: its heading.
        settings: of the command, as plain values, without keys.
        figures: all of them.
        sides: what is shown side by side in the samples.
        judges: name -> whether it compares instead of scoring.
        rows: the samples.
        pictures: caption -> file in the report's folder.
        lineage: model -> lineage, None where none is recorded.
        notes: what a reader must know.
    """

    title: str
    settings: Mapping[str, Any]
    figures: Sequence[Figure]
    sides: Sequence[str]
    judges: Mapping[str, bool]
    rows: Sequence[PageRow]
    pictures: Mapping[str, str]
    lineage: Mapping[str, Lineage | None]
    notes: Sequence[str]


def write_report(report: Report, folder: Path, num_on_page: int) -> list[Path]:
    """Write all files of a report.

    Args:
        report: what was found.
        folder: where to; the pictures lie there already.
        num_on_page: samples on the page, from the first; `samples.jsonl` has all.

    Returns:
        The files: `report.json`, `report.md`, `samples.jsonl`, `report.html`, `figures.csv`.
    """
    contents = {
        "report.json": json.dumps(as_json(report), indent=1, allow_nan=False) + "\n",
        "report.md": as_markdown(report),
        "samples.jsonl": "".join(json.dumps(row) + "\n" for row in sample_table(report)),
        "report.html": as_page(report, folder, num_on_page),
        "figures.csv": _as_csv([figure.as_json() for figure in report.figures]),
    }
    for name, text in contents.items():
        write_text_whole(folder / name, text)
    return [folder / name for name in contents]


def _as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """Return everything but the samples as plain values."""
    return {
        "title": report.title,
        "settings": dict(report.settings),
        "versions": versions(),
        "notes": list(report.notes),
        "figures": [figure.as_json() for figure in report.figures],
        "lineage": dict(report.lineage),
    }


def as_markdown(report: Report) -> str:
    """Return tables, pictures and lineage as Markdown, foreign text made harmless."""
    lines = [f"# {markdown_cell(report.title)}", ""]
    for note in report.notes:
        lines += [markdown_cell(note), ""]
    for name, figures in sections(report.figures).items():
        lines += [f"## {name}", "", _table_line(HEAD), _table_line(["---"] * len(HEAD))]
        lines += [_table_line(map(markdown_cell, row)) for row in table_rows(figures)]
        lines.append("")
    for caption, name in report.pictures.items():
        lines += [f"![{caption}]({name})", ""]
    lines += ["## Where the models come from", ""]
    for name, lineage in report.lineage.items():
        lines += [f"**{markdown_cell(name)}**", ""]
        # Indented: a code block, whatever is in it.
        lines += [f"    {_one_line(line)}" for line in render_lineage(lineage)]
        lines.append("")
    lines += ["Settings:", "", f"    {_one_line(json.dumps(dict(report.settings)))}", ""]
    return "\n".join(lines)


def as_page(report: Report, folder: Path, num_on_page: int) -> str:
    """Return the page."""
    notes = list(report.notes)
    if num_on_page < len(report.rows):
        notes.append(f"The page has the first {num_on_page} of {len(report.rows)} samples.")
    return render_page(
        Page(
            report.title,
            report.sides,
            report.judges,
            report.rows[:num_on_page],
            report.figures,
            {caption: folder / name for caption, name in report.pictures.items()},
            {name: list(render_lineage(lineage)) for name, lineage in report.lineage.items()},
            notes,
        )
    )


def sample_table(report: Report) -> list[dict[str, Any]]:
    """Return one flat row a sample: prompt, each side's response and scores, verdicts."""
    judges = list(report.judges)
    rows = []
    for row in report.rows:
        flat: dict[str, Any] = {"prompt": row.prompt}
        for side, text, scores in zip(report.sides, row.texts, row.scores, strict=True):
            flat[side] = text
            for judge, score in zip(judges, scores, strict=True):
                if score is not None:
                    flat[f"{side} {judge}"] = score
        for number, verdicts in row.verdicts.items():
            for pair, verdict in verdicts.items():
                first, second = (report.sides[int(place)] for place in pair.split("-"))
                flat[f"{first} over {second} {judges[number]}"] = verdict
        rows.append(flat)
    return rows


def _table_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    return visible(text).replace("\n", " ")
