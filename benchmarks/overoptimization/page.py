"""The page of the proof: tables and pictures from what the pieces left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from benchmarks.overoptimization.gao_forms import GaoFit, fit_best_of_n, fit_rl
from benchmarks.overoptimization.pieces import Proof, proxy_name
from benchmarks.overoptimization.scale import PPORun
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import mean
from lit_rlhf.markdown import markdown_table
from lit_rlhf.overoptimization import (
    DivergenceTest,
    History,
    best_of_n_kl,
    best_of_n_scores,
)

Floats = npt.NDArray[np.float64]
_ALARM_PICTURE = "overoptimization-alarm.png"
_FIRST_PICTURE = "overoptimization.png"
_MEAN = "mean of judges"
PENALTY = 10.0  # deviations of the judges that are taken off the mean of their scores
LOST = 0.1  # of what gold gained: by then the alarm should have come


def read_history(file: Path) -> History:
    """Read what was kept of a run; its validation reward is the lower bound of its judges.

    (Runs of earlier versions kept a validation reward of their own: the mean of two judges.)
    """
    history = History()
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        step, ids = row.pop("step"), row.pop("prompt_ids")
        row.pop("response", None)
        judges = np.array([row[name] for name in row if name.startswith("judge-")])
        if judges.size:
            row[_MEAN] = judges.mean(axis=0)
            row["validation"] = row[_MEAN] - PENALTY * judges.std(axis=0)
        history.add(step, ids, row)
    return history


def first_alarm(history: History, judge: str = "validation") -> int | None:
    """Return the index of the look at which the monitor's test first fires.

    Args:
        history: of a run.
        judge: whose values are tested; "gold" tells what a validation reward without faults gives.
    """
    validation, proxy = history.values(judge), history.values("reward")
    test = DivergenceTest()
    for look in range(1, len(history.looks)):
        found = test.examine(validation[: look + 1], proxy[: look + 1], number=look)
        if found is not None and found.p_value <= test.false_alarm_rate:
            return look
    return None


def lost_look(gold: Floats, share: float = LOST) -> int | None:
    """Return the first look at which gold has clearly lost a share of what it clearly gained.

    Where it gained nothing, it is the first look at which it is clearly below its start. Clearly:
    0 lies outside the interval of the same prompts' differences (95 %, by a bootstrap of them).

    Args:
        gold: `[K, n]`, each prompt's value at each look; the first is the initial policy's.
        share: of the largest gain up to then.
    """
    means = gold.mean(axis=1)
    gains = means - means[0]
    for look in range(1, len(gains)):
        best = int(gains[:look].argmax())
        if mean(gold[best] - gold[0]).low <= 0:
            best = 0
        has_fallen = gains[look] < (1 - share) * gains[best]
        if has_fallen and mean(gold[look] - gold[best]).high < 0:
            return look
    return None


def write_page(proof: Proof, page: Path) -> None:
    """Write tables and pictures of the results that there are.

    Args:
        proof: with the folder of the results; a `notes.md` in it is put at the top of the page.
        page: a Markdown file; its pictures come beside it.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.overoptimization --scale {proof.scale.name} --docs"
    sections = ["# Over-optimisation, measured"]
    notes = proof.results / "notes.md"
    if notes.exists():
        sections.append(notes.read_text(encoding="utf-8").strip())
    sections.append(f"`{command}` writes this page. The tables below have every run.")
    if proof.best_of_n_file.exists():
        kept = json.loads(proof.best_of_n_file.read_text(encoding="utf-8"))
        sections += _best_of_n(proof, {k: np.array(v) for k, v in kept.items()}, page.parent)
    runs = [run for run in proof.scale.ppo if proof.values_file(run).exists()]
    if runs:
        sections += _ppo(proof, runs, page.parent)
    alarms = {
        kind: [run for run in runs if proof.values_file(run).exists()]
        for kind, runs in proof.scale.alarms().items()
    }
    if any(alarms.values()):
        sections += _alarms(proof, alarms, page.parent)
    if all(alarms.values()):
        _draw_first(proof, alarms, page.parent / _FIRST_PICTURE)
    sections.append(_minutes(proof))
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _best_of_n(proof: Proof, scores: Mapping[str, Floats], folder: Path) -> list[str]:
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= proof.scale.bon_samples]
    distances = [math.sqrt(best_of_n_kl(n)) for n in sizes]
    gold = (scores["gold"] - scores["gold"].mean()) / scores["gold"].std()
    rows, curves = [], {}
    for name, proxy in _proxies(proof, scores).items():
        standard = (proxy - proxy.mean()) / proxy.std()
        by_size = list(best_of_n_scores(proxy, gold, sizes).values())  # [P] each
        of_gold = [float(values.mean()) for values in by_size]
        of_proxy = [float(v.mean()) for v in best_of_n_scores(proxy, standard, sizes).values()]
        fit = fit_best_of_n(distances, np.array(of_gold) - of_gold[0])
        curves[name] = (of_gold, of_proxy, fit)
        turn = _turn(fit, distances[-1])
        cells = [*(f"{value:.2f}" for value in of_gold[:-1]), _gain(by_size[-1], by_size[0])]
        rows.append([name, *cells, f"{of_proxy[-1]:.2f}", turn])
    header = ["proxy", *(f"gold, n = {n}" for n in sizes), f"proxy, n = {sizes[-1]}"]
    _draw(folder / "overoptimization-best-of-n.png", np.array(distances), curves)
    return [
        "## Best of n",
        f"{scores['gold'].shape[0]} prompts, {scores['gold'].shape[1]} samples each, in deviations "
        "of each model over all samples; the interval (95 %) is that of the gain over n = 1, by a "
        "bootstrap of the prompts. The last column is the sqrt(KL) at which `d (alpha - beta d)`, "
        "fitted to gold, turns, where that is within these.",
        markdown_table([*header, "gold turns at"], rows),
        "![best of n](overoptimization-best-of-n.png)",
    ]


def _proxies(proof: Proof, scores: Mapping[str, Floats]) -> dict[str, Floats]:
    proxies = {}
    for size in proof.scale.sizes:
        proxies[f"{size} texts"] = scores[proxy_name(size, 1)]
        if size in proof.scale.ensemble_sizes:
            members = range(1, 1 + proof.scale.num_members)
            stacked = np.stack([scores[proxy_name(size, member)] for member in members])
            proxies[f"{size} texts, mean of {len(stacked)}"] = stacked.mean(0)
            proxies[f"{size} texts, minimum of {len(stacked)}"] = stacked.min(0)
    return proxies


def _draw(
    file: Path,
    distances: Floats,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], GaoFit | None]],
) -> None:
    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    for name, (gold, proxy, fit) in curves.items():
        (line,) = panels[0].plot(distances, gold, "o", markersize=3, label=name)
        if fit is not None:
            grid = np.linspace(0, distances.max(), 100)
            panels[0].plot(grid, gold[0] + fit.predict(grid), color=line.get_color())
        panels[1].plot(distances, proxy, marker="o", markersize=3, color=line.get_color())
    for panel, title in zip(panels, ("gold, with the fit", "proxy"), strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("sqrt(KL)")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(file)


def _ppo(proof: Proof, runs: Sequence[PPORun], folder: Path) -> list[str]:
    rows = []
    histories = _histories(proof, runs)
    for name, history in histories.items():
        distances, gold = history.distances(), history.values("gold")
        turn = _turn(_fit(history, "gold"), float(distances.max()))
        peak = int(gold.mean(axis=1).argmax())
        gains = [f"{_gain(gold[look], gold[0])} at {distances[look]:.2f}" for look in (peak, -1)]
        prompts = str(len(history.prompt_ids))
        rows.append([name, prompts, *gains, turn, _step(history, first_alarm(history))])
    _draw_runs(histories, folder / "overoptimization-ppo.png")
    gains = ["largest gain of gold, at sqrt(KL)", "last gain"]
    header = ["run", "prompts", *gains, "fit turns at", "alarm at step"]
    return [
        "## PPO",
        "Gains of gold with 95 % intervals: each prompt is compared with itself at the first "
        "validation. A run's name has the judged texts, the layers of the reward model (`depth`; "
        "all if not named), one reward model or the minimum of several, the KL coefficient, the "
        "learning rate, the seed and the iterations.",
        markdown_table(header, rows),
        "![PPO](overoptimization-ppo.png)",
    ]


def _histories(proof: Proof, runs: Sequence[PPORun]) -> dict[str, History]:
    return {run.name: read_history(proof.values_file(run)) for run in runs}


def _draw_runs(histories: Mapping[str, History], file: Path) -> None:
    """Draw what each reward gained against sqrt(KL), with fits and, dashed, the first alarm."""
    num_columns = min(3, len(histories))
    num_rows = math.ceil(len(histories) / num_columns)
    figure = Figure(figsize=(4.5 * num_columns, 4 * num_rows), dpi=100, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for panel in panels[len(histories) :]:
        panel.set_axis_off()
    for (run, history), panel in zip(histories.items(), panels, strict=False):
        distances = history.distances()
        for name in ("reward", "validation", "gold"):
            gains = history.means(name) - history.means(name)[0]
            (line,) = panel.plot(distances, gains, "o", markersize=3, label=name)
            fit = _fit(history, name)
            if fit is not None:
                grid = np.linspace(0, distances.max(), 100)
                fitted = fit.predict(grid) - history.means(name)[0]
                panel.plot(grid, fitted, color=line.get_color())
        alarm = first_alarm(history)
        if alarm is not None:
            panel.axvline(distances[alarm], color="black", linestyle="--", label="alarm")
        panel.set_title(run, fontsize=8)
        panel.set_xlabel("sqrt(KL)")
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    figure.savefig(file)


def _draw_first(proof: Proof, alarms: Mapping[str, Sequence[PPORun]], file: Path) -> None:
    """Draw the worst run that was told in time beside the best healthy one."""
    histories = {kind: list(_histories(proof, runs).values()) for kind, runs in alarms.items()}
    told = [run for run in histories["diverging"] if _is_told_in_time(run)]
    wrong = min(told or histories["diverging"], key=_last_gold)
    healthy = max(histories["healthy"], key=_last_gold)
    _draw_runs({"gets worse while its reward rises": wrong, "healthy": healthy}, file)


def _is_told_in_time(history: History) -> bool:
    alarm, loss_at = first_alarm(history), lost_look(history.values("gold"))
    return alarm is not None and loss_at is not None and alarm < loss_at


def _last_gold(history: History) -> float:
    means = history.means("gold")
    return float(means[-1] - means[0])


def _alarms(proof: Proof, alarms: Mapping[str, Sequence[PPORun]], folder: Path) -> list[str]:
    rows = []
    # Of each kind and run: the first look with an alarm, and that with the loss.
    looks: dict[str, list[tuple[int | None, int | None]]] = {kind: [] for kind in alarms}
    histories = {kind: _histories(proof, runs) for kind, runs in alarms.items()}
    for kind, of_kind in histories.items():
        for name, history in of_kind.items():
            gold = history.values("gold")
            alarm, loss_at = first_alarm(history), lost_look(gold)
            looks[kind].append((alarm, loss_at))
            peak = int(gold.mean(axis=1).argmax())
            gains = [_gain(gold[look], gold[0]) for look in (peak, -1)]
            gains[0] += f" at {_step(history, peak)}"
            at_alarm = "" if alarm is None else _gain(gold[alarm], gold[0])
            others = [first_alarm(history, judge) for judge in (_MEAN, "gold")]
            steps = [_step(history, look) for look in (alarm, loss_at, *others)]
            rows.append([kind, name, *gains, steps[0], at_alarm, *steps[1:]])
    of_all = {name: run for of_kind in histories.values() for name, run in of_kind.items()}
    _draw_runs(of_all, folder / _ALARM_PICTURE)
    silent = sum(alarm is None for alarm, _ in looks["healthy"])
    lost = [(alarm, loss_at) for alarm, loss_at in looks["diverging"] if loss_at is not None]
    in_time = sum(alarm is not None and alarm < loss_at for alarm, loss_at in lost)
    loss = f"gold has clearly lost {LOST:.0%} of its gain"
    header = [
        "kind",
        "run",
        "largest gain of gold, at step",
        "last gain",
        "alarm at step",
        "gain of gold then",
        f"{loss} at step",
        "alarm by the mean of the judges",
        "alarm by gold",
    ]
    return [
        "## The alarm",
        f"Of {len(looks['diverging'])} runs that should diverge, {len(lost)} reach a validation "
        f"at which {loss}. The alarm comes before it in {in_time} of these. It is silent in "
        f"{silent} of {len(looks['healthy'])} runs that should not diverge. (Clearly: the 95 % "
        "intervals of the best gain so far and of the fall since, by a bootstrap of the prompts, "
        "exclude 0. Where nothing was gained, the loss is that from the start.) The validation "
        f"reward is the mean of {proof.scale.num_judges} judges minus {PENALTY:g} of their "
        "deviations.",
        markdown_table(header, rows),
        f"![alarm]({_ALARM_PICTURE})",
    ]


def _fit(history: History, name: str) -> GaoFit | None:
    """Fit Gao's form of reinforcement learning to a curve; None with too few looks."""
    try:
        return fit_rl(history.distances(), history.means(name), with_start=True)
    except DataError:
        return None


def _turn(fit: GaoFit | None, farthest: float) -> str:
    """Say where a fitted curve turns; what lies beyond the data is a guess and not given."""
    if fit is None or fit.peak is None:
        return "does not"
    return f"{fit.peak:.2f}" if fit.peak <= farthest else "beyond these"


def _gain(values: Floats, start: Floats) -> str:
    """Say how much higher `[P]` values are than those of the same prompts at the start."""
    gain = mean(values - start)
    return f"{gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def _step(history: History, look: int | None) -> str:
    return "none" if look is None else str(history.looks[look].step)


def _minutes(proof: Proof) -> str:
    lines = proof.minutes_file.read_text(encoding="utf-8").splitlines()
    minutes: dict[str, float] = {}
    for piece in map(json.loads, lines):
        kind = "scores" if piece["piece"].startswith("scores") else piece["piece"].split("-")[0]
        minutes[kind] = minutes.get(kind, 0.0) + piece["minutes"]
    parts = ", ".join(f"{kind} {value:.0f}" for kind, value in minutes.items())
    return f"All of it took {sum(minutes.values()):.0f} minutes: {parts}."
