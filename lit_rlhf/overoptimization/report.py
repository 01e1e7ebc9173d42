"""The files of a watched run: each prompt's values, the picture, and a page that explains both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_rlhf.extras import can_draw
from lit_rlhf.markdown import markdown_table
from lit_rlhf.overoptimization.alarm import Alarm
from lit_rlhf.overoptimization.history import History
from lit_rlhf.overoptimization.picture import draw
from lit_rlhf.whole_files import write_text_whole

VALUES_NAME, PICTURE_NAME, PAGE_NAME = "values.jsonl", "curves.png", "report.md"


def write_report(
    folder: Path,
    history: History,
    p_values: Sequence[float],
    alarms: Sequence[Alarm],
    *,
    proxy: str,
    validation: str,
    with_picture: bool,
) -> Path:
    """Write `values.jsonl`, `report.md` and `curves.png`, in the place of earlier ones.

    Args:
        folder: where; made when missing.
        history: at least one validation.
        p_values: `[K]` of the tests, NaN where there was none.
        alarms: in their order.
        proxy: name of the optimised reward.
        validation: name of the validation reward.
        with_picture: draw, which takes about half a second; else an earlier picture stays.

    Returns:
        The path of the picture; there is none before the first, or without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history.write(folder / VALUES_NAME)
    picture = folder / PICTURE_NAME
    if with_picture and can_draw():
        draw(picture, history, p_values, alarms, proxy=proxy, validation=validation)
    curves = []
    for look, distance, p_value in zip(history.looks, history.distances(), p_values, strict=True):
        means = [f"{np.nanmean(values):.4g}" for values in look.values.values()]
        curves.append([str(look.step), f"{distance:.3f}", *means, f"{p_value:.2g}"])
    sections = [
        "# Over-optimisation",
        *([alarm.text() for alarm in alarms] or ["No alarm.\n"]),
        "## Means over the prompts\n",
        markdown_table(["step", "sqrt(KL)", *history.names, "p"], curves) + "\n",
        "`p` is that of the sequential test, paid for all that was tested before it.\n",
        *([f"![curves]({PICTURE_NAME})\n"] if picture.exists() else []),
    ]
    write_text_whole(folder / PAGE_NAME, "\n".join(sections))
    return picture
