"""Draw PPO over its iterations, without pyplot: no display and no global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

_PANELS = (
    ("reward (trained against)", "reward", "tab:blue"),
    ("validation reward (never trained against)", "validation_reward", "tab:green"),
    ("VADER score", "vader", "tab:orange"),
    ("KL to the SFT policy, nats per response", "kl", "tab:red"),
    ("KL coefficient", "kl_coefficient", "tab:purple"),
)


class Curve(TypedDict):
    """A metric over PPO's iterations, counted from 1."""

    iterations: list[int]
    values: list[float]


def draw_ppo(curves: Mapping[str, Curve], kl_target: float, path: Path) -> None:
    """Draw reward, validation reward, VADER score, KL and KL coefficient into one picture.

    Args:
        curves: by name.
        kl_target: shown beside the KL.
        path: of the PNG file.
    """
    canvas = Canvas(figsize=(9, 8), dpi=110, layout="constrained")
    for place, (title, name, colour) in enumerate(_PANELS, start=1):
        panel = canvas.add_subplot(3, 2, place)
        # Markers: a curve of one point would otherwise be invisible.
        curve = curves[name]
        panel.plot(curve["iterations"], curve["values"], marker="o", markersize=3, color=colour)
        if name == "kl":
            panel.axhline(kl_target, color="grey", linestyle="--", label="target")
            panel.legend()
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("PPO iteration")
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.savefig(path)
