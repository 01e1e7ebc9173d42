"""Render the report for people."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from lit_rlhf.demo.report_schema import Figure, Report, Sample, Standing

_MARKS = re.compile(r"([\\`*_\[\]|~$])")


def render_markdown(report: Report, pictures: dict[str, str]) -> str:
    """Return the text of `report.md`.

    Args:
        report: what to show.
        pictures: caption -> file name, relative to the report.
    """
    sections = [
        f"# {escape(report.title)}",
        _summary(report),
        *(f"- {escape(note)}" for note in report.notes),
        "## Figures",
        _figures(report.figures),
        *_standings(report.standings),
        "## Pictures",
        *(f"![{caption}]({name})" for caption, name in pictures.items()),
        "## Samples",
        _samples(report.samples),
        "## The run",
        _table(
            ("phase", "seconds", "memory at the peak, GiB"),
            [
                (phase.name, f"{phase.seconds:.0f}", f"{phase.peak_memory_gib:.2f}")
                for phase in report.phases
            ],
        ),
        "The same, phase by phase:",
        "\n".join(["```", *report.commands, "```"]),
        _table(("package", "version"), sorted(report.versions.items())),
    ]
    return "\n\n".join(sections) + "\n"


def escape(text: str) -> str:
    r"""Return text that stands in a Markdown table as it is, on one line.

    >>> escape("a|b *c*\n<d>")
    'a\\|b \\*c\\*<br>&lt;d&gt;'
    """
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "<br>".join(_MARKS.sub(r"\\\1", html.escape(line, quote=False)) for line in lines)


def _summary(report: Report) -> str:
    asked = [figure for figure in report.figures if figure.met is not None]
    num_met = sum(figure.met is True for figure in asked)
    seconds = sum(phase.seconds for phase in report.phases)
    return (
        f"{num_met} of {len(asked)} targets met. Seed {report.seed}, {seconds / 60:.1f} minutes, "
        f"{report.peak_memory_gib:.2f} GiB at the peak, precision {report.precision}."
    )


def _figures(figures: Iterable[Figure]) -> str:
    rows = [
        (
            escape(figure.name),
            f"{_number(figure.value)} {escape(figure.unit)}".strip(),
            "" if figure.interval is None else " to ".join(map(_number, figure.interval)),
            "" if figure.n is None else str(figure.n),
            escape(figure.target),
            {True: "yes", False: "**no**", None: ""}[figure.met],
        )
        for figure in figures
    ]
    return _table(("figure", "value", "95 % interval", "n", "target", "met"), rows)


def _standings(standings: Sequence[Standing]) -> Iterator[str]:
    """Yield a section with one row and one column a policy, nothing without standings."""
    if not standings:
        return
    yield "## Who is ahead at which KL"
    yield (
        "How often the row's response is better than the column's by the validation reward, ties "
        "counted half, with the 95 % interval and the number of prompts. Of n samples of SFT the "
        "reward model chose the best: KL log n - (n - 1) / n. Of two policies at about the same "
        "KL, the one that wins has made more of it."
    )
    names = [standing.policy for standing in standings]
    rows = []
    for standing in standings:
        cells = {
            match.opponent: f"{100 * match.win_rate:.0f} % "
            f"({100 * match.interval[0]:.0f} to {100 * match.interval[1]:.0f}; {match.n})"
            for match in standing.matches
        }
        against = [cells.get(name, "") for name in names]
        numbers = [f"{standing.kl:.2f}", _number(standing.validation_reward)]
        rows.append((escape(standing.policy), *numbers, *against))
    header = ("policy", "KL, nats per response", "validation reward")
    yield _table((*header, *(f"against {escape(name)}" for name in names)), rows)


def _samples(samples: Sequence[Sample]) -> str:
    # A dictionary keeps the order in which the names were first seen.
    responses = [response for sample in samples for response in sample.responses]
    names = list(dict.fromkeys(name for response in responses for name in response.scores))
    rows = [
        (
            escape(sample.prompt) if response is sample.responses[0] else "",
            escape(response.policy),
            escape(response.text) or "(nothing)",
            *(_number(response.scores.get(name, math.nan)) for name in names),
        )
        for sample in samples
        for response in sample.responses
    ]
    return _table(("prompt", "policy", "response", *map(escape, names)), rows)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"  # noqa: RUF001  (a dash is meant)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
