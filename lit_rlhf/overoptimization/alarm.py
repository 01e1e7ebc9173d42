"""Why there is an alarm, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from lit_rlhf.markdown import markdown_table
from lit_rlhf.overoptimization.history import History
from lit_rlhf.overoptimization.sequential_test import Contrast

COLUMNS = ("quantity", "before", "now", "change", "95 % interval")


class Row(NamedTuple):
    """How one quantity changed, paired over prompts.

    Attributes:
        name: of the quantity.
        before: mean over prompts at the reference.
        now: mean over prompts now.
        low: lower end of the normal 95 % interval of the change, for this comparison alone.
        high: its upper end.
    """

    name: str
    before: float
    now: float
    low: float
    high: float


@dataclass(frozen=True)
class Alarm:
    """A divergence that was found.

    Attributes:
        step: optimizer steps at the last validation.
        reference_step: at the last validation of the earlier side.
        window: validations averaged on each side.
        number: of the test in the run.
        num_prompts: `n`.
        p_value: paid for all contrasts of all tests, see `DivergenceTest`.
        false_alarm_rate: of the whole run, at most.
        action: what was done.
        rows: the quantities, validation reward first, then the optimised one.
    """

    step: int
    reference_step: int
    window: int
    number: int
    num_prompts: int
    p_value: float
    false_alarm_rate: float
    action: str
    rows: tuple[Row, ...]

    @property
    def headline(self) -> str:
        """What happened, in a sentence."""
        looks = "" if self.window == 1 else f", each the mean of {self.window} validations"
        return (
            f"over-optimisation at step {self.step}: since step {self.reference_step} the "
            f"validation reward `{self.rows[0].name}` fell while the optimised reward "
            f"`{self.rows[1].name}` rose{looks}. {self.num_prompts} prompts, test number "
            f"{self.number}, p = {self.p_value:.2g} after all that was tested before; at most "
            f"{self.false_alarm_rate:.0%} of runs without divergence would say this. "
            f"Action: {self.action}."
        )

    def cells(self) -> list[list[str]]:
        """Return the table under `COLUMNS`."""
        return [
            [
                row.name,
                _number(row.before),
                _number(row.now),
                f"{row.now - row.before:+.3g}",
                f"{row.low:+.3g} to {row.high:+.3g}",
            ]
            for row in self.rows
        ]

    def text(self) -> str:
        """Return headline and table for a terminal or a Markdown page."""
        return f"{self.headline}\n\n{markdown_table(COLUMNS, self.cells())}\n"

    def state_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self) | {"rows": [list(row) for row in self.rows]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Alarm:
        """Rebuild an alarm."""
        return cls(**{**state, "rows": tuple(Row(*row) for row in state["rows"])})


def explain(history: History, contrast: Contrast, names: Sequence[str]) -> tuple[Row, ...]:
    """Compare every quantity as the contrast compared the rewards.

    Args:
        history: with the last validation.
        contrast: which validations were compared.
        names: of the quantities that come first; all others follow in their order.
    """
    rows = []
    for name in [*names, *(other for other in history.names if other not in names)]:
        values = history.values(name)
        before = values[contrast.reference - contrast.window + 1 : contrast.reference + 1]
        now = values[-contrast.window :]
        change = now.mean(axis=0) - before.mean(axis=0)  # [n]
        change = change[~np.isnan(change)]  # some cannot be scored
        error = float(change.std(ddof=1)) / math.sqrt(change.size) if change.size > 1 else math.nan
        mean = float(change.mean()) if change.size else math.nan
        low, high = mean - 1.96 * error, mean + 1.96 * error
        rows.append(Row(name, float(np.nanmean(before)), float(np.nanmean(now)), low, high))
    return tuple(rows)


def _number(value: float) -> str:
    return f"{value:.4g}"
