"""Draw the curves of a watched run against sqrt(KL), without pyplot: it needs no display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_rlhf.overoptimization.alarm import Alarm
from lit_rlhf.overoptimization.history import History

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.axes import Axes

_COLUMNS = 3
_DISTANCE = "sqrt(KL), sqrt(nats a response)"


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

    Each reward has its mean with a 95 % band over prompts, and Gao's form where it can be fitted.

    Args:
        path: of the PNG file.
        history: at least one look.
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
    for panel, name in zip(panels, names, strict=False):
        is_reward = name in roles
        title = f"{name} ({roles[name]})" if is_reward else name
        _curve(panel, history, name, title, with_fit=is_reward)
        _mark(panel, history, alarms)
    _test(panels[len(names)], history, p_values, alarms)
    for panel in panels[len(names) + 1 :]:
        panel.set_axis_off()
    figure.savefig(path)


def _curve(panel: Axes, history: History, name: str, title: str, *, with_fit: bool) -> None:
    distances, values = history.distances(), history.values(name)
    means = values.mean(axis=1)
    panel.plot(distances, means, marker="o", markersize=3, linewidth=1)
    if values.shape[1] > 1:
        half = 1.96 * values.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
        panel.errorbar(distances, means, half, fmt="none", alpha=0.3, color="tab:blue")
    fit = history.fit(name) if with_fit else None
    if fit is not None:
        grid = np.linspace(0, distances.max(), 100)
        panel.plot(grid, fit.predict(grid), "--", color="grey", label="d (alpha - beta log d)")
        panel.legend(fontsize=7)
    panel.set_title(title, fontsize=9)
    panel.set_xlabel(_DISTANCE, fontsize=8)
    panel.grid(alpha=0.3)


def _mark(panel: Axes, history: History, alarms: Sequence[Alarm]) -> None:
    place = {look.step: d for look, d in zip(history.looks, history.distances(), strict=True)}
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
    panel.set_title("p of the sequential test", fontsize=9)
    panel.set_xlabel("optimizer steps", fontsize=8)
    panel.grid(alpha=0.3)
