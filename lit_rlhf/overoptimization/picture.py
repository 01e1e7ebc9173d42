"""Draw the curves of a watched run against sqrt(KL), without pyplot: it needs no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_rlhf.overoptimization.alarm import Alarm
from lit_rlhf.overoptimization.history import Floats, History

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.axes import Axes

_COLUMNS = 3


def draw(
    path: Path,
    history: History,
    p_values: Sequence[float],
    alarms: Sequence[Alarm],
    *,
    proxy: str,
    validation: str,
) -> None:
    """Write the picture: one panel a quantity, then the test.

    Each quantity has its mean over prompts with 95 % intervals.

    Args:
        path: of the PNG file.
        history: at least one validation.
        p_values: `[K]` of the tests, NaN where there was none.
        alarms: marked by a line.
        proxy: name of the optimised reward.
        validation: name of the validation reward.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    others = [name for name in history.names if name not in {proxy, validation, "kl"}]
    names = [proxy, validation, *others]
    num_rows = math.ceil((len(names) + 1) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.8 * num_rows), dpi=100, layout="constrained")
    panels = list(figure.subplots(num_rows, _COLUMNS, squeeze=False).flat)
    roles = {proxy: "optimised", validation: "validation"}
    distances = history.distances()
    for panel, name in zip(panels, names, strict=False):
        _curve(panel, distances, history.values(name), history, alarms)
        title = f"{name} ({roles[name]})" if name in roles else name
        _label(panel, title, "sqrt(KL), sqrt(nats a response)")
    _test(panels[len(names)], history, p_values, alarms)
    for panel in panels[len(names) + 1 :]:
        panel.set_axis_off()
    figure.savefig(path)


def _curve(
    panel: Axes, distances: Floats, values: Floats, history: History, alarms: Sequence[Alarm]
) -> None:
    means = np.nanmean(values, axis=1)
    panel.plot(distances, means, marker="o", markersize=3, linewidth=1)
    if values.shape[1] > 1:
        half = 1.96 * np.nanstd(values, axis=1) / math.sqrt(values.shape[1] - 1)
        panel.errorbar(distances, means, half, fmt="none", alpha=0.3, color="tab:blue")
    place = {look.step: d for look, d in zip(history.looks, distances, strict=True)}
    for alarm in alarms:
        panel.axvline(place[alarm.step], color="tab:red", linewidth=1)
        panel.axvline(place[alarm.reference_step], color="tab:green", linewidth=1, linestyle=":")


def _test(
    panel: Axes, history: History, p_values: Sequence[float], alarms: Sequence[Alarm]
) -> None:
    steps = [look.step for look in history.looks]
    # A logarithmic axis has no zero, and a p-value below that says nothing more.
    shown = [max(value, 1e-12) for value in p_values]
    panel.plot(steps, shown, marker="o", markersize=3, linewidth=1, color="tab:purple")
    panel.set_yscale("log")
    for alarm in alarms:
        panel.axvline(alarm.step, color="tab:red", linewidth=1)
    _label(panel, "p of the sequential test", "optimizer steps")


def _label(panel: Axes, title: str, x_axis: str) -> None:
    # matplotlib would set what is between two dollars as a formula.
    panel.set_title(title.replace("$", r"\$"), fontsize=9)
    panel.set_xlabel(x_axis, fontsize=8)
    panel.grid(alpha=0.3)
