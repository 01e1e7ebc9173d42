"""A report in every form: JSON, Markdown, CSV, samples, pictures and the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.figures import Report, sections
from lit_rlhf.evaluation.page import HEAD, render_page, table_rows
from lit_rlhf.markdown import markdown_cell, markdown_table, visible
from lit_rlhf.models.lineage import render_lineage, versions
from lit_rlhf.whole_files import write_text_whole


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
        "report.html": render_page(report, folder, num_on_page),
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
        rows = [list(map(markdown_cell, row)) for row in table_rows(figures)]
        lines += [f"## {name}", "", markdown_table(HEAD, rows), ""]
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


def _one_line(text: str) -> str:
    return visible(text).replace("\n", " ")
