"""Draw the report's pictures: PPO over its iterations, the KL coefficient, the calibration.

Drawn without pyplot: no display, no global state, whatever backend the user has set.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lit_rlhf.demo.report_schema import CalibrationBin, Curve, PPOCurves, Report

_DOTS_PER_INCH = 110
# Left by the monitor in the run's own folder, if the report stands above it.
_WATCHED = "ppo/overoptimization/curves.png"


def draw_pictures(report: Report, folder: Path) -> dict[str, str]:
    """Write the pictures into `folder`.

    Returns:
        Caption -> file name, in the order in which they are shown.
    """
    pictures = {
        "Reward, validation reward, VADER score and KL over PPO iterations": (
            "ppo.png",
            _ppo(report.curves),
        ),
        "KL coefficient over PPO iterations": ("kl_coefficient.png", _coefficient(report.curves)),
        "Calibration of the reward model on held-out texts": (
            "calibration.png",
            _calibration(report.calibration),
        ),
    }
    for name, canvas in pictures.values():
        canvas.savefig(folder / name)
    named = {caption: name for caption, (name, _) in pictures.items()}
    if (folder / _WATCHED).exists():
        named["What the over-optimisation monitor saw in PPO"] = _WATCHED
    return named


def _ppo(curves: PPOCurves) -> Canvas:
    canvas = Canvas(figsize=(9, 6), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = canvas.subplots(2, 2, sharex=True).flat
    panels = [
        ("reward (trained against)", curves.reward, "tab:blue"),
        ("validation reward (never trained against)", curves.validation_reward, "tab:green"),
        ("VADER score", curves.vader, "tab:orange"),
        ("KL to the SFT policy, nats per response", curves.kl, "tab:red"),
    ]
    for panel, (title, curve, colour) in zip(axes, panels, strict=True):
        _plot(panel, curve, title, colour)
    kl_panel = canvas.axes[-1]
    if curves.kl_target is not None:
        kl_panel.axhline(curves.kl_target, color="grey", linestyle="--", label="target")
        kl_panel.legend()
    for panel in canvas.axes[2:]:
        panel.set_xlabel("PPO iteration")
    return canvas


def _coefficient(curves: PPOCurves) -> Canvas:
    canvas = Canvas(figsize=(6, 3.5), dpi=_DOTS_PER_INCH, layout="constrained")
    panel = canvas.subplots()
    _plot(panel, curves.kl_coefficient, "KL coefficient", "tab:purple")
    panel.set_xlabel("PPO iteration")
    return canvas


def _plot(panel: Axes, curve: Curve, title: str, colour: str) -> None:
    # Markers: a curve of one point would otherwise be invisible.
    panel.plot(curve.iterations, curve.values, marker="o", markersize=3, color=colour)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _calibration(bins: tuple[CalibrationBin, ...]) -> Canvas:
    """A reliability diagram above the distribution of the predictions."""
    canvas = Canvas(figsize=(5, 5.5), dpi=_DOTS_PER_INCH, layout="constrained")
    above, below = canvas.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    filled = [row for row in bins if row.weight > 0]
    predicted = [row.predicted for row in filled]
    total = sum(row.weight for row in filled)
    above.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect")
    above.plot(predicted, [row.human for row in filled], marker="o", label="reward model")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of people who preferred it")
    above.set_title("Reward model: predicted and human preference", fontsize=10)
    above.legend()
    above.grid(alpha=0.3)
    below.bar(predicted, [row.weight / total for row in filled], width=0.05)
    below.set(xlabel="predicted probability of being preferred", ylabel="share of pairs")
    return canvas
