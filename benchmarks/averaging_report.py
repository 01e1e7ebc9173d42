"""The tables and the picture of `benchmarks.averaging`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from scipy import stats

Row = dict[str, object]
COLUMNS = {"accuracy": "accuracy", "calibration": "calibration error", "brier": "Brier score"}
KINDS = ("share", "shrunk share", "majority vote")
TITLES = {False: "the same pairs", True: "the same number of judgments"}


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """Write averaging.md and averaging.png."""
    counts = sorted({int(str(row["count"])) for row in rows})
    lines = ["| judgments a pair | label agrees with held-out raters |", "| --- | --- |"]
    lines += [f"| {n} | {_shown(_values(rows, 'label', count=n))} |" for n in counts]
    for is_budget, title in TITLES.items():
        lines += ["", f"{title}:", "", "| judgments a pair | label |" + _cells(COLUMNS.values())]
        lines.append("| --- " * (2 + len(COLUMNS)) + "|")
        for count in counts:
            for kind in KINDS:
                key = {"count": count, "budget": is_budget, "kind": kind}
                cells = [_shown(_values(rows, name, **key)) for name in COLUMNS]
                lines.append(f"| {count} | {kind} |" + _cells(cells))
    lines += ["", "share minus majority vote, of the same pairs and raters:", ""]
    lines += ["| judgments a pair | the same |" + _cells(COLUMNS.values()), "| --- " * 5 + "|"]
    for is_budget, what in ((False, "pairs"), (True, "number of judgments")):
        lines += [f"| {n} | {what} |" + _gaps(rows, count=n, budget=is_budget) for n in counts[1:]]
    text = "\n".join(lines)
    (folder / "averaging.md").write_text(f"{text}\n", encoding="utf-8")
    _draw(rows, counts, folder / "averaging.png")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval by Student's t."""
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, max(1, len(values) - 1))) * spread


def _values(rows: Sequence[Row], name: str, **key: object) -> list[float]:
    wanted = key.items()
    return [float(str(row[name])) for row in rows if name in row and wanted <= row.items()]


def _gaps(rows: Sequence[Row], **key: object) -> str:
    """Return the cells of the differences, seed by seed: both labels have the same draws."""
    cells = []
    for name in COLUMNS:
        share, vote = (_values(rows, name, kind=kind, **key) for kind in (KINDS[0], KINDS[2]))
        cells.append(_shown([a - b for a, b in zip(share, vote, strict=True)]))
    return _cells(cells)


def _shown(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def _cells(values: Iterable[str]) -> str:
    return "".join(f" {value} |" for value in values)


def _draw(rows: Sequence[Row], counts: Sequence[int], path: Path) -> None:
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")

    def curve(axis: int, label: str, name: str, **key: object) -> None:
        points = [interval(_values(rows, name, count=count, **key)) for count in counts]
        means, halves = zip(*points, strict=True)
        axes[axis].errorbar(counts, means, halves, fmt="o-", capsize=3, label=label)

    curve(0, "label", "label")
    for is_budget, title in TITLES.items():
        for kind in KINDS:
            label = f"{kind}, {title}"
            curve(1, label, "accuracy", budget=is_budget, kind=kind)
            curve(2, label, "calibration", budget=is_budget, kind=kind)
    titles = ("label and held-out raters agree", "reward model's accuracy", "its calibration error")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="judgments a pair", xscale="log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
    axes[2].set_ylim(0, None)
    axes[1].legend(fontsize="x-small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
