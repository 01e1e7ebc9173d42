"""One measured figure: what it says, of whom, by which judge, with interval and sample size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Estimate


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
