"""What an evaluation found: figures with their intervals, samples, and the models' lineage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.models.lineage import Lineage


class Figure(NamedTuple):
    """A figure of a report.

    Attributes:
        section: the table that it is in.
        subject: the policy or reward model.
        metric: what was measured.
        estimate: value, interval and sample size.
        unit: of the value; "" for a number without one, "%" for a share (stored as 0 to 1).
        against: the opponent, or the part of the data, if any.
        judge: who judged, if anybody did.
    """

    section: str
    subject: str
    metric: str
    estimate: Estimate
    unit: str = ""
    against: str = ""
    judge: str = ""

    @property
    def name(self) -> str:
        """The metric's name for loggers, such as `eval/ppo/win_rate/sft/validation`."""
        parts = ("eval", self.subject, self.metric, self.against, self.judge)
        return "/".join(part.replace("/", ".") for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; what is not a number becomes null."""
        return {
            "section": self.section,
            "subject": self.subject,
            "against": self.against or None,
            "judge": self.judge or None,
            "metric": self.metric,
            **self.estimate.as_json(),
            "unit": self.unit or None,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Figure:
        """Read what `as_json` returned; null becomes no number again."""
        texts = {
            name: row[name] or "" for name in ("section", "subject", "metric", "unit", "against")
        }
        return cls(**texts, judge=row["judge"] or "", estimate=Estimate.from_json(row))

    def shown(self) -> tuple[str, str]:
        """Return value and interval as a reader wants them, such as `61.5 %`, `52.0 to 70.1`."""
        value, low, high, _ = self.estimate
        unit = f" {self.unit}" if self.unit else ""
        if math.isnan(value):
            return "-", "-"
        text = f"{self._short(value)}{unit}"
        if math.isnan(low):
            return text, "-"
        return text, f"{self._short(low)} to {self._short(high)}"

    def _short(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.1f}"
        if value == 0 or 0.01 <= abs(value) < 10:
            return f"{value:.3f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2e}"


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


def sections(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Return the figures by their section, in the order in which they came."""
    tables: dict[str, list[Figure]] = {}
    for figure in figures:
        tables.setdefault(figure.section, []).append(figure)
    return tables


def read_figures(file: Path) -> list[Figure]:
    """Return the figures that an evaluation left in its `report.json`."""
    report = json.loads(file.read_text(encoding="utf-8"))
    return [Figure.from_json(row) for row in report["figures"]]


def find_figure(figures: Sequence[Figure], **wanted: str) -> Figure:
    """Return the only figure whose fields are these.

    Raises:
        DataError: there is none, or more than one.
    """
    found = [figure for figure in figures if wanted.items() <= figure._asdict().items()]
    if len(found) != 1:
        raise DataError(f"the evaluation has {len(found)} figures with {wanted}, expected one")
    return found[0]
