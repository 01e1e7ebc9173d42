"""The pictures of a report, without pyplot: no display and no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.calibration import ReliabilityBin
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.evaluation.policies import AGAINST, BEST_OF_N
from lit_rlhf.extras import can_draw

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_DOTS_PER_INCH = 110


def draw_reliability(tables: Mapping[str, Sequence[ReliabilityBin]], path: Path) -> bool:
    """Draw what people said against what each model predicted; return whether that could be."""
    if not can_draw():
        return False
    canvas, panel = _panel()
    panel.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect")
    for name, bins in tables.items():
        places = [row.predicted for row in bins]
        plot_with_intervals(panel, places, [row.human for row in bins], name)
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.set(xlabel="predicted probability of being preferred", ylabel="share of people")
    panel.legend(fontsize=8)
    canvas.savefig(path)
    return True


def draw_best_of_n(figures: Sequence[Figure], path: Path) -> bool:
    """Draw each judge's score of best-of-n against n, if there is such a curve.

    Returns:
        Whether a picture was written.
    """
    curves: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.section == BEST_OF_N:
            curves.setdefault(f"{figure.subject}: {figure.judge}", []).append(figure)
    if not curves or not can_draw():
        return False
    canvas, panel = _panel()
    for name, points in curves.items():
        sizes = [int(point.metric.removeprefix("best_of_")) for point in points]
        plot_with_intervals(panel, sizes, [point.estimate for point in points], name)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="n: the best of n samples", ylabel="score")
    panel.legend(fontsize=8)
    canvas.savefig(path)
    return True


def draw_win_rates(figures: Sequence[Figure], path: Path) -> bool:
    """Draw the win rates of all pairs, if there are any; the return value says whether."""
    rates = [
        figure
        for figure in figures
        if figure.section == AGAINST and figure.metric.endswith("win_rate")
    ]
    if not rates or not can_draw():
        return False
    canvas, panel = _panel(height=1.5 + 0.35 * len(rates))
    for place, figure in enumerate(reversed(rates)):
        value, low, high, _ = figure.estimate
        colour = "tab:blue" if figure.metric == "win_rate" else "tab:green"
        panel.plot([100 * low, 100 * high], [place, place], color=colour)
        panel.plot(100 * value, place, marker="o", color=colour)
    names = [
        f"{figure.subject} against {figure.against}, {figure.judge}"
        + ("" if figure.metric == "win_rate" else ", equal length")
        for figure in reversed(rates)
    ]
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.axvline(50, color="grey", linestyle="--")
    panel.set(xlim=(0, 100), xlabel="win rate, %")
    canvas.savefig(path)
    return True


def _panel(height: float = 4.5) -> tuple[Canvas, Axes]:
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - optional

    canvas = Canvas(figsize=(7, height), dpi=_DOTS_PER_INCH, layout="constrained")
    panel = canvas.add_subplot()
    panel.grid(alpha=0.3)
    return canvas, panel


def plot_with_intervals(
    panel: Axes, places: Sequence[float], estimates: Sequence[Estimate], name: str
) -> None:
    """Draw values against places, each with its interval, and a name for the legend."""
    # matplotlib would set what is between two dollars as a formula.
    label = name.replace("$", r"\$")
    values, lows, highs, _ = zip(*estimates, strict=True)
    (line,) = panel.plot(places, values, marker="o", markersize=4, label=label)
    panel.vlines(places, lows, highs, color=line.get_color(), alpha=0.5)
