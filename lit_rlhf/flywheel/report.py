"""One page on all rounds: `report.md`, `report.json` and a picture in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import find_figure, read_figures
from lit_rlhf.evaluation.pictures import plot_with_intervals
from lit_rlhf.extras import can_draw
from lit_rlhf.feedback.agreement import patterns_of, percent_agreement
from lit_rlhf.feedback.judgments import JudgedTask, Judgment, num_compared
from lit_rlhf.flywheel.one_round import MEASURES, OWN, random_share, read_tasks, record_path
from lit_rlhf.flywheel.promotion import GATE, NEW, SFT, Promotion
from lit_rlhf.flywheel.settings import FlywheelSettings
from lit_rlhf.flywheel.steps import how_to_mend, is_finished, read_json, reading, write_json
from lit_rlhf.markdown import markdown_cell, markdown_table
from lit_rlhf.whole_files import write_text_whole

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.axes import Axes

PICTURE = "rounds.png"
_ABOUT = ("about_samples", "about_reward", "about_policy")  # in `promotion.json`, in words
Column = Callable[["RoundReport"], str]


class RoundReport(NamedTuple):
    """What one round came to.

    Attributes:
        round: its number.
        is_promoted: the next round starts from its policy.
        promotion: what `promotion.json` says.
        measures: what `measures.json` says.
        scores: judge -> the new policy's mean score, with its interval.
        gains: final judge -> the gain over SFT, with its interval.
        judgments: made in this round.
        all_judgments: of all rounds so far, and what else was in the store.
        tasks: asked in this round.
        share_decided: of its tasks that early stop closed before every slot was filled.
        agreement: share of pairs of labelers who said the same of a task of the random share; None
            without overlap.
        human_minutes: that people spent on the round; None where nobody measured.
    """

    round: int
    is_promoted: bool
    promotion: dict[str, Any]
    measures: dict[str, Any]
    scores: dict[str, dict[str, float]]
    gains: dict[str, dict[str, float]]
    judgments: int
    all_judgments: int
    tasks: int
    share_decided: float
    agreement: float | None
    human_minutes: float | None


def write_report(settings: FlywheelSettings) -> Path:
    """Write the page on all finished rounds.

    Returns:
        The path of `report.md`.

    Raises:
        DataError: no round is finished, or what one left cannot be read.
    """
    rounds = list(_finished_rounds(settings))
    if not rounds:
        raise DataError(
            f"{settings.path}: no round is finished yet; see `lit-rlhf flywheel status`"
        )
    has_picture = _draw(rounds, settings.path / PICTURE)
    write_json(settings.path / "report.json", [row._asdict() for row in rounds])
    path = settings.path / "report.md"
    text = "\n\n".join(_sections(settings, rounds, has_picture=has_picture))
    write_text_whole(path, text + "\n")
    return path


def _finished_rounds(settings: FlywheelSettings) -> Iterator[RoundReport]:
    number = 1
    while is_finished(record_path(settings.round_folder(number), "promote")):
        yield read_round(settings, number)
        number += 1


def read_round(settings: FlywheelSettings, number: int) -> RoundReport:
    """Read what a finished round left.

    Raises:
        DataError: one of its files is gone, torn, or of another version or other settings.
    """
    folder, judges = settings.round_folder(number), [GATE, *settings.gate.final_judges]
    with _left_by("promote", folder, "promotion.json") as path:
        promotion = _object(path, (*Promotion._fields, *_ABOUT))
        Estimate.from_json(promotion["gain"])
    with _left_by("measure", folder, "measures.json") as path:
        measures = _object(path, MEASURES)
    with _left_by("judge", folder, "judge/report.json") as path:
        figures = read_figures(path)
        found = partial(find_figure, figures, subject=NEW)
        scores = {name: found(metric="score", judge=name) for name in judges}
        gains = {name: found(metric="score_difference", against=SFT, judge=name) for name in judges}
    with _left_by("collect", folder, "judged/full.jsonl") as path:
        all_judgments = sum(len(task.judgments) for task in read_tasks(path))
    with _left_by("collect", folder, f"judged/{OWN}") as path:
        own = read_tasks(path)
        agreement = agreement_of(random_share(own))
    said = [judgment for task in own for judgment in task.judgments]
    spent = [judgment.duration_s for judgment in said if judgment.duration_s is not None]
    return RoundReport(
        round=number,
        is_promoted=promotion["is_promoted"],
        promotion=promotion,
        measures=measures,
        scores={name: figure.estimate.as_json() for name, figure in scores.items()},
        gains={name: figure.estimate.as_json() for name, figure in gains.items()},
        judgments=len(said),
        all_judgments=all_judgments,
        tasks=len(own),
        share_decided=sum(_is_decided_early(task, settings) for task in own) / max(len(own), 1),
        agreement=agreement,
        human_minutes=sum(spent) / 60 if spent else None,
    )


@contextmanager
def _left_by(step: str, folder: Path, name: str) -> Iterator[Path]:
    """Give the path of what a round's step left, and tell what to do where it cannot be read."""
    with reading(folder / name, how_to_mend(record_path(folder, step))):
        yield folder / name


def _object(path: Path, fields: Iterable[str]) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    for name in fields:
        content[name]  # or a KeyError
    return content


def agreement_of(tasks: Sequence[JudgedTask]) -> float | None:
    """Return the share of pairs of labelers who said the same: first, second, or no difference."""
    counts = np.zeros((len(tasks), 3), np.int64)
    for place, task in enumerate(tasks):
        for judgment in task.judgments:
            side = _side(judgment)
            if side is not None:
                counts[place, side] += 1
    agreement = percent_agreement(patterns_of(counts))
    return agreement if isinstance(agreement, float) else None


def trace(settings: FlywheelSettings, number: int) -> list[str]:
    """Follow one judgment of a round to the checkpoints that it changed, as lines of text."""
    folder = settings.round_folder(number)
    own = read_tasks(folder / "judged" / OWN)
    found = [(task, one) for task in own for one in task.judgments if _side(one) is not None]
    if not found:
        return []
    task, judgment = found[0]
    reward, policy = (_digest_of(record_path(folder, step)) for step in ("reward", "policy"))
    chosen_by = task.metadata.get("chosen_by")
    is_ppo = settings.policy.phase == "ppo"
    learned = "was trained against it" if is_ppo else "by DPO from the same file"
    return [
        f"judgment {judgment.id} by {judgment.labeler}: {judgment.outcome} {judgment.ranks}",
        f"of a pair that {chosen_by} chose ({task.metadata.get('share')} share), in "
        f"{folder / 'tasks.jsonl'}",
        f"is in {folder / 'judged' / 'full.jsonl'}, and counts in its training.jsonl",
        f"from which {folder / 'reward' / 'model'} was trained, sha256 {reward}",
        f"and {folder / 'policy' / 'model'} {learned}, sha256 {policy}",
    ]


def _digest_of(record: Path) -> str:
    with reading(record, "start the run again to run its step again"):
        return str(read_json(record)["sha256"][:12])


def _sections(
    settings: FlywheelSettings, rounds: Sequence[RoundReport], *, has_picture: bool
) -> Iterator[str]:
    promoted = [str(row.round) for row in rounds if row.is_promoted]
    yield f"# {len(rounds)} rounds of the flywheel"
    yield (
        f"Promoted: round {', '.join(promoted) or 'none'}. {sum(row.judgments for row in rounds)} "
        f"judgments of {sum(row.tasks for row in rounds)} pairs; the last reward model's data had "
        f"{rounds[-1].all_judgments}."
    )
    finals = list(settings.gate.final_judges)
    yield _table(rounds, _JUDGMENTS)
    yield "**Policies.** Gains are over SFT on held-out prompts, with 95 % intervals."
    own = {f"gain by {name}": partial(_gain, name=name) for name in finals}
    yield _table(rounds, {**_POLICIES, **own})
    if finals:
        yield f"No gate ever asked {', '.join(map(markdown_cell, finals))}."
    yield _ABOUT_REWARDS
    yield _table(rounds, _REWARDS)
    if has_picture:
        yield f"![Gain by each judge, and accuracy of the reward models, by round]({PICTURE})"
    for row in rounds:
        words = [row.promotion[name] for name in _ABOUT]
        why = "; ".join(row.promotion["reasons"])
        words += [f"Not promoted: {why}."] if why else []
        yield f"**Round {row.round}.** {' '.join(words)}"
    lines = trace(settings, rounds[-1].round)
    yield "\n".join(["One judgment, from its pair to the policy:", "", "```", *lines, "```"])


def _table(rounds: Sequence[RoundReport], columns: Mapping[str, Column]) -> str:
    rows = [[str(row.round), *(column(row) for column in columns.values())] for row in rounds]
    return markdown_table(["round", *columns], rows)


def _gain(row: RoundReport, name: str) -> str:
    return _shown(row.gains[name])


def _measure(row: RoundReport, name: str) -> str:
    return _shown(row.measures[name], percent=True)


_JUDGMENTS: dict[str, Column] = {
    "promoted": lambda row: "yes" if row.is_promoted else "**no**",
    "judgments": lambda row: str(row.judgments),
    "decided early": lambda row: f"{100 * row.share_decided:.0f} %",
    "labelers agree": lambda row: "-" if row.agreement is None else f"{100 * row.agreement:.0f} %",
    "minutes": lambda row: "-" if row.human_minutes is None else f"{row.human_minutes:.0f}",
}
_POLICIES: dict[str, Column] = {
    "KL": lambda row: f"{row.promotion['kl']:.2f}",
    "length": lambda row: f"{row.promotion['length_ratio']:.2f}x",
    "gain by the gate": partial(_gain, name=GATE),
    "gain over the last promoted": lambda row: _shown(row.promotion["gain"]),
}
_REWARDS: dict[str, Column] = {
    "last model, random share": partial(_measure, name="on_random_share"),
    "own model, new policy's responses": partial(_measure, name="on_own_samples"),
    "raters": partial(_measure, name="raters_right"),
}
_ABOUT_REWARDS = (
    "**Reward models.** Share of pairs in the right order. The last round's model on this round's "
    "random share, which it never saw; and, where raters are simulated, this round's model on the "
    "new policy's own responses, and single judgments of the raters themselves."
)


def _draw(rounds: Sequence[RoundReport], path: Path) -> bool:
    if not can_draw():
        return False
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - optional

    canvas = Canvas(figsize=(9, 3.6), dpi=110, layout="constrained")
    gains, accuracies = canvas.subplots(1, 2)
    for name in rounds[0].gains:
        _line(gains, rounds, [row.gains[name] for row in rounds], name)
    for name, label in zip(MEASURES, ("last model, random share", "own samples"), strict=False):
        _line(accuracies, rounds, [row.measures[name] for row in rounds], label)
    gains.set(xlabel="round", ylabel="gain over SFT")
    accuracies.set(xlabel="round", ylabel="share of pairs in order")
    for panel in (gains, accuracies):
        panel.set_xticks([row.round for row in rounds])
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    canvas.savefig(path)
    return True


def _line(
    panel: Axes,
    rounds: Sequence[RoundReport],
    points: Sequence[Mapping[str, Any] | None],
    label: str,
) -> None:
    held = [(row.round, point) for row, point in zip(rounds, points, strict=True) if point]
    if held:
        estimates = [Estimate.from_json(point) for _, point in held]
        plot_with_intervals(panel, [number for number, _ in held], estimates, label)


def _shown(point: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    if point is None or point["value"] is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 2)
    unit = " %" if percent else ""
    value = f"{scale * point['value']:.{digits}f}{unit}"
    if point["low"] is None:
        return value
    return f"{value} ({scale * point['low']:.{digits}f} to {scale * point['high']:.{digits}f})"


def _is_decided_early(task: JudgedTask, settings: FlywheelSettings) -> bool:
    stop = settings.early_stop
    return stop is not None and stop.holds(task.judgments) and num_compared(task) < settings.slots


def _side(judgment: Judgment) -> int | None:
    positions = judgment.positions(2)
    if positions is None or positions[0] is None or positions[1] is None:
        return None
    return 2 if positions[0] == positions[1] else int(positions[0] > positions[1])
