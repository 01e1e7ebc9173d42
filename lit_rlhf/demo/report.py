"""The demonstration's page: what the evaluations found, against what is asked of it.

`make_report` reads what the commands left in the run's folder: the `report.json` of both
evaluations and PPO's `metrics.csv`. `write_report` puts `report.json`, `report.md` and a picture
beside them.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.demo.pictures import Curve, draw_ppo
from lit_rlhf.errors import DataError
from lit_rlhf.markdown import markdown_cell
from lit_rlhf.overoptimization import best_of_n_kl

PERPLEXITY_FALL = "SFT: fall of the perplexity"
KL_TARGET = 4.5  # nats, as configs/demo/quick/ppo.yaml
BEST_OF = (4, 16)
NUM_SHOWN = 6
CURVES = {
    "reward": "train/ppo/reward",
    "validation_reward": "val/ppo/validation",
    "vader": "val/ppo/vader",
    "kl": "train/ppo/kl",
    "kl_coefficient": "train/ppo/kl_coef",
}
# Shown where a command left them in the run's folder.
PICTURES = {
    "PPO over its iterations": "ppo.png",
    "Calibration of the reward model on held-out texts": "evaluate/rewards/reliability.png",
    "Win rates of the policies": "evaluate/policies/win_rates.png",
    "What the over-optimisation monitor saw in PPO": "ppo/overoptimization/curves.png",
}


class Figure(NamedTuple):
    """One number of the report.

    Attributes:
        name: what it measures; unique within a report.
        value: in `unit`; NaN when it could not be measured.
        unit: such as "%", "nats" or "" for a plain number.
        interval: ends of the 95 % interval, in `unit`; None where there is none.
        n: number of samples (prompts, pairs) behind it; None where it is no statistic.
        target: what it should be, in words; empty when nothing is asked of it.
        met: whether the target is met; None without a target.
    """

    name: str
    value: float
    unit: str = ""
    interval: tuple[float, float] | None = None
    n: int | None = None
    target: str = ""
    met: bool | None = None

    def at_least(self, target: float) -> Figure:
        """Ask a value of it."""
        words = f"at least {target:g} {self.unit}".strip()
        return self._replace(target=words, met=self.value >= target)


class Evaluation:
    """The figures of an evaluation's `report.json`.

    Args:
        folder: of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "report.json"
        content = json.loads(self.file.read_text(encoding="utf-8"))
        self.figures: list[dict[str, Any]] = content["figures"]
        self.versions: dict[str, str] = content["versions"]

    def find(self, name: str, **wanted: str | None) -> Figure:
        """Return the only figure whose fields are these, under the name that it gets.

        Raises:
            DataError: there is none, or more than one.
        """
        found = [row for row in self.figures if all(row[key] == wanted[key] for key in wanted)]
        if len(found) != 1:
            raise DataError(f"{self.file}: {len(found)} figures with {wanted}, expected one")
        unit = found[0]["unit"] or ""
        value, low, high = (
            math.nan if found[0][key] is None else found[0][key] * (100 if unit == "%" else 1)
            for key in ("value", "low", "high")
        )
        return Figure(name, value, unit, None if math.isnan(low) else (low, high), found[0]["n"])


def make_report(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Read what the commands left, and compare it with what is asked.

    Args:
        run: what ran, see `run_loop`.
        folder: of the run.

    Returns:
        The content of `report.json`, with NaN where nothing could be measured.

    Raises:
        DataError: an evaluation lacks a figure.
    """
    rewards, policies = (Evaluation(folder / "evaluate" / name) for name in ("rewards", "policies"))
    curves = read_curves(folder / "ppo" / "metrics.csv")
    samples = (folder / "evaluate" / "policies" / "samples.jsonl").read_text(encoding="utf-8")
    figures = [
        *_phases_figures(rewards.find, policies.find, full=run["scale"] == "full"),
        *_ppo_figures(policies.find, curves),
    ]
    return {
        "title": f"lit_rlhf demo ({run['scale']}, seed {run['seed']})",
        **run,
        "figures": [figure._asdict() for figure in figures],
        "standings": standings(policies),
        "curves": curves,
        "samples": [json.loads(line) for line in samples.splitlines()[:NUM_SHOWN]],
        "versions": policies.versions,
    }


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write the report's files into the run's folder, and return the path of `report.md`."""
    content = json.dumps(_without_nan(report), indent=2, ensure_ascii=False, allow_nan=False)
    # First of all the figures: a picture that fails must not cost them.
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    draw_ppo(report["curves"], KL_TARGET, folder / "ppo.png")
    pictures = {name: file for name, file in PICTURES.items() if (folder / file).exists()}
    path = folder / "report.md"
    path.write_text(as_markdown(report, pictures), encoding="utf-8")
    return path


def _phases_figures(
    rewards: Callable[..., Figure], policies: Callable[..., Figure], *, full: bool
) -> Iterable[Figure]:
    """Yield what is asked of SFT, the reward model and DPO."""
    perplexity = {"metric": "perplexity"}
    before = policies("SFT: held-out perplexity before", subject="base", **perplexity)
    after = policies("SFT: held-out perplexity after", subject="sft", **perplexity)
    fall = Figure(PERPLEXITY_FALL, 100 * (1 - after.value / before.value), "%")
    yield from (before, after, fall.at_least(25))
    ordered = rewards(
        "Reward model: held-out pairs in people's order", section="Accuracy", metric="accuracy"
    )
    apart = rewards("Reward model: the same, pairs more than 1 apart", against="over 1 apart")
    yield from (ordered.at_least(83 if full else 76), apart.at_least(93 if full else 86))
    yield rewards("Reward model: calibration error", metric="calibration_error")
    yield rewards("Reward model: Brier score", metric="brier_score")
    name = "DPO: win rate against SFT by the validation reward"
    by = {"metric": "win_rate", "judge": "validation"}
    yield policies(name, subject="dpo", against="sft", **by).at_least(65)


def _ppo_figures(find: Callable[..., Figure], curves: Mapping[str, Curve]) -> Iterable[Figure]:
    pair = {"subject": "ppo", "against": "sft"}
    gain = {"metric": "standardized_difference", "judge": "validation"}
    yield find("PPO: gain in validation reward over SFT", **pair, **gain).at_least(0.8)
    gain = {"metric": "score_difference", "judge": "vader"}
    vader = find("PPO: gain in VADER score over SFT", **pair, **gain)
    is_sure = vader.value >= 0.15 and vader.interval is not None and vader.interval[0] > 0
    yield vader._replace(target="at least 0.15, interval above 0", met=is_sure)
    kl = find("PPO: KL to SFT at the end", subject="ppo", metric="kl")
    is_near = abs(kl.value - KL_TARGET) <= 0.3 * KL_TARGET
    yield kl._replace(target=f"within 30 % of {KL_TARGET:g}", met=is_near)
    coefficients = curves["kl_coefficient"]["values"]
    steps = [after - before for before, after in itertools.pairwise(coefficients)]
    rises, falls = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
    yield Figure("PPO: iterations that raised the KL coefficient", rises).at_least(1)
    yield Figure("PPO: iterations that lowered the KL coefficient", falls).at_least(1)
    yield Figure("PPO: KL coefficient at the end", coefficients[-1])
    own, before = (find("", subject=name, metric="distinct_2").value for name in ("ppo", "sft"))
    ratio = 100 * own / before if before else math.nan
    yield Figure("PPO: distinct-2 against SFT's", ratio, "%").at_least(80)
    largest = max(curves["first_log_ratio"]["values"])
    name = "PPO: largest absolute log ratio of a first minibatch"
    yield Figure(name, largest, target="under 0.001", met=largest < 1e-3)


def standings(policies: Evaluation) -> list[dict[str, Any]]:
    """Return who is ahead at which KL: every policy, and the best of n of SFT, by rising KL.

    Each has `policy`, `kl`, `validation_reward` and `against`: opponent -> `value`, `interval` and
    `n` of the win rate over it by the validation reward, in percent.
    """
    rows = {}
    for name in ("base", "sft", "dpo", "ppo"):
        score = policies.find("", section="Scores", subject=name, judge="validation")
        rows[name] = (policies.find("", subject=name, metric="kl").value, score.value)
    for n in BEST_OF:
        by = {"metric": f"best_of_{n}", "judge": "validation, chosen by reward"}
        score = policies.find("", subject="sft", **by)
        rows[f"sft, best of {n} by reward"] = (best_of_n_kl(n), score.value)
    against: dict[str, dict[str, Any]] = {name: {} for name in rows}
    for one, other in itertools.permutations(rows, 2):
        pair = {"subject": one, "against": other, "metric": "win_rate", "judge": "validation"}
        if any(row.items() >= pair.items() for row in policies.figures):
            rate = policies.find("", **pair)
            low, high = rate.interval or (math.nan, math.nan)
            against[one][other] = {"value": rate.value, "interval": (low, high), "n": rate.n}
            turned = {"value": 100 - rate.value, "interval": (100 - high, 100 - low)}
            against[other][one] = {**turned, "n": rate.n}
    return [
        {"policy": name, "kl": kl, "validation_reward": score, "against": against[name]}
        for name, (kl, score) in sorted(rows.items(), key=lambda item: item[1])
    ]


def read_curves(path: Path) -> dict[str, Curve]:
    """Read PPO's metrics over its iterations, which are counted from 1, from `metrics.csv`."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(stream)
        ]
    steps = [row["step"] for row in rows if CURVES["kl"] in row]
    iteration = {step: number for number, step in enumerate(steps, 1)}
    curves: dict[str, Curve] = {}
    for name, metric in {**CURVES, "first_log_ratio": "train/ppo/first_log_ratio"}.items():
        filled = [row for row in rows if metric in row]
        iterations = [iteration[row["step"]] for row in filled]
        curves[name] = {"iterations": iterations, "values": [row[metric] for row in filled]}
    return curves


def as_markdown(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the text of `report.md`.

    Args:
        report: see `make_report`.
        pictures: caption -> file name, relative to the report.
    """
    verdicts = [figure["met"] for figure in report["figures"] if figure["met"] is not None]
    seconds = sum(phase["seconds"] for phase in report["phases"])
    peak = max(phase["peak_memory_gib"] for phase in report["phases"])
    names = [row["policy"] for row in report["standings"]]
    sections = [
        f"# {report['title']}",
        f"{sum(verdicts)} of {len(verdicts)} targets met. Seed {report['seed']}, "
        f"{seconds / 60:.1f} minutes, {peak:.2f} GiB at the peak, precision {report['precision']}.",
        "## Figures",
        _table(
            ("figure", "value", "95 % interval", "n", "target", "met"),
            map(_figure_cells, report["figures"]),
        ),
        "## Who is ahead at which KL",
        "How often the row's response is better than the column's by the validation reward, ties "
        "counted half, with the 95 % interval and the number of prompts. Of n samples of SFT the "
        "reward model chose the best: KL log n - (n - 1) / n. Of two policies at about the same "
        "KL, the one that wins has made more of it.",
        _table(
            ("policy", "KL, nats per response", "validation reward", *(f"vs {n}" for n in names)),
            (_standing_cells(row, names) for row in report["standings"]),
        ),
        "## Pictures",
        *(f"![{caption}]({name})" for caption, name in pictures.items()),
        "## Samples",
        _table(
            ("prompt", "SFT", "DPO", "PPO"),
            (
                [markdown_cell(sample[name]) for name in ("prompt", "sft", "dpo", "ppo")]
                for sample in report["samples"]
            ),
        ),
        "[All of them with their scores](evaluate/policies/report.html); all figures of "
        "[the policies](evaluate/policies/report.md) and [the reward model]"
        "(evaluate/rewards/report.md).",
        "## The run",
        _table(
            ("command", "seconds", "memory at the peak, GiB"),
            (
                (phase["name"], f"{phase['seconds']:.0f}", f"{phase['peak_memory_gib']:.2f}")
                for phase in report["phases"]
            ),
        ),
        "The same by hand:",
        "\n".join(["```", *report["commands"], "```"]),
        _table(("package", "version"), sorted(report["versions"].items())),
    ]
    return "\n\n".join(sections) + "\n"


def _figure_cells(figure: Mapping[str, Any]) -> Sequence[str]:
    return (
        figure["name"],
        f"{_number(figure['value'])} {figure['unit']}".strip(),
        "" if figure["interval"] is None else " to ".join(map(_number, figure["interval"])),
        "" if figure["n"] is None else str(figure["n"]),
        figure["target"],
        {True: "yes", False: "**no**", None: ""}[figure["met"]],
    )


def _standing_cells(row: Mapping[str, Any], names: Iterable[str]) -> Iterable[str]:
    yield from (row["policy"], f"{row['kl']:.2f}", _number(row["validation_reward"]))
    for name in names:
        rate = row["against"].get(name)
        ends = "" if rate is None else " to ".join(f"{end:.0f}" for end in rate["interval"])
        yield "" if rate is None else f"{rate['value']:.0f} % ({ends}; {rate['n']})"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _without_nan(value: object) -> object:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
