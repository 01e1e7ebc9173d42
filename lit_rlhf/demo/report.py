"""The demonstration's page: what is asked of the run, and where everything else is.

All of it is read from what the commands left in the run's folder: the `report.json` of both
evaluations and PPO's `metrics.csv`.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure, find_figure, read_figures
from lit_rlhf.markdown import markdown_cell, markdown_table
from lit_rlhf.whole_files import write_text_whole

PERPLEXITY_FALL = "SFT: fall of the perplexity"
KL_TARGET = 4.5  # nats, as configs/demo/quick/ppo.yaml
NUM_SHOWN = 3
# Shown where a command left them in the run's folder.
PICTURES = {
    "Calibration of the reward model on held-out texts": "evaluate/rewards/reliability.png",
    "Win rates of the policies": "evaluate/policies/win_rates.png",
    "What the over-optimisation monitor saw in PPO": "ppo/overoptimization/curves.png",
}


class Finding(NamedTuple):
    """One figure of the page.

    Attributes:
        name: what it measures; unique on the page.
        figure: value, interval, unit and sample size.
        target: what it should be, in words; empty when nothing is asked of it.
        is_met: whether the target is met; None without a target.
    """

    name: str
    figure: Figure
    target: str = ""
    is_met: bool | None = None

    @property
    def value(self) -> float:
        """The figure's value; a share is in [0, 1]."""
        return self.figure.estimate.value

    def at_least(self, target: float) -> Finding:
        """Ask a value of it."""
        unit = self.figure.unit
        words = f"at least {100 * target if unit == '%' else target:g} {unit}".strip()
        return self._replace(target=words, is_met=self.value >= target)


def read_findings(folder: Path, *, is_full: bool) -> list[Finding]:
    """Read what the commands left, and compare it with what is asked.

    Args:
        folder: of the run.
        is_full: ask more of the reward model, as of the long run.

    Raises:
        DataError: an evaluation lacks a figure.
    """
    rewards, policies = (
        read_figures(folder / "evaluate" / name / "report.json") for name in ("rewards", "policies")
    )
    with (folder / "ppo" / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        metrics = list(csv.DictReader(stream))
    return [
        *_phases_findings(rewards, policies, is_full=is_full),
        *_ppo_findings(policies, metrics),
    ]


def write_report(run: Mapping[str, Any], findings: Sequence[Finding], folder: Path) -> Path:
    """Write `report.json` and `report.md` into the run's folder.

    Args:
        run: what ran, see `run_loop`.
        findings: see `read_findings`.
        folder: of the run.

    Returns:
        The path of `report.md`.
    """
    rows = [
        {"name": name, **figure.as_json(), "target": target, "met": is_met}
        for name, figure, target, is_met in findings
    ]
    content = json.dumps({**run, "figures": rows}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_whole(folder / "report.json", content + "\n")
    path = folder / "report.md"
    write_text_whole(path, "\n\n".join(_sections(run, findings, folder)) + "\n")
    return path


def _phases_findings(
    rewards: Sequence[Figure], policies: Sequence[Figure], *, is_full: bool
) -> Iterator[Finding]:
    """Yield what is asked of SFT, the reward model and DPO."""
    perplexity = {"metric": "perplexity"}
    before = _find(policies, "SFT: held-out perplexity before", subject="base", **perplexity)
    after = _find(policies, "SFT: held-out perplexity after", subject="sft", **perplexity)
    yield from (before, after)
    yield _computed(PERPLEXITY_FALL, 1 - after.value / before.value, "%").at_least(0.25)
    name = "Reward model: held-out pairs in people's order"
    ordered = _find(rewards, name, section="Accuracy", metric="accuracy")
    yield ordered.at_least(0.83 if is_full else 0.76)
    apart = _find(
        rewards, "Reward model: the same, pairs more than 1 apart", against="over 1 apart"
    )
    yield apart.at_least(0.93 if is_full else 0.86)
    name = "DPO: win rate against SFT by the validation reward"
    by = {"metric": "win_rate", "judge": "validation"}
    yield _find(policies, name, subject="dpo", against="sft", **by).at_least(0.65)


def _ppo_findings(
    policies: Sequence[Figure], metrics: Sequence[Mapping[str, str]]
) -> Iterator[Finding]:
    pair = {"subject": "ppo", "against": "sft"}
    gain = {"metric": "standardized_difference", "judge": "validation"}
    yield _find(policies, "PPO: gain in validation reward over SFT", **pair, **gain).at_least(0.8)
    gain = {"metric": "score_difference", "judge": "vader"}
    vader = _find(policies, "PPO: gain in VADER score over SFT", **pair, **gain)
    is_sure = vader.value >= 0.15 and vader.figure.estimate.low > 0
    yield vader._replace(target="at least 0.15, interval above 0", is_met=is_sure)
    kl = _find(policies, "PPO: KL to SFT at the end", subject="ppo", metric="kl")
    is_near = abs(kl.value - KL_TARGET) <= 0.3 * KL_TARGET
    yield kl._replace(target=f"within 30 % of {KL_TARGET:g}", is_met=is_near)
    coefficients = _curve(metrics, "train/ppo/kl_coef")
    steps = [after - before for before, after in itertools.pairwise(coefficients)]
    rises, falls = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
    yield _computed("PPO: iterations that raised the KL coefficient", rises).at_least(1)
    yield _computed("PPO: iterations that lowered the KL coefficient", falls).at_least(1)
    own, before = (
        _find(policies, "", subject=name, metric="distinct_2").value for name in ("ppo", "sft")
    )
    kept = own / before if before else math.nan
    yield _computed("PPO: distinct-2 against SFT's", kept, "%").at_least(0.8)
    largest = max(_curve(metrics, "train/ppo/first_log_ratio"))
    ratio = _computed("PPO: largest absolute log ratio of a first minibatch", largest)
    yield ratio._replace(target="under 0.001", is_met=largest < 1e-3)


def _curve(metrics: Sequence[Mapping[str, str]], name: str) -> list[float]:
    """Return a metric over PPO's iterations."""
    return [float(row[name]) for row in metrics if row[name]]


def _find(figures: Sequence[Figure], name: str, **wanted: str) -> Finding:
    """Return the only figure whose fields are these, under the name that it gets."""
    return Finding(name, find_figure(figures, **wanted))


def _computed(name: str, value: float, unit: str = "") -> Finding:
    """Return a figure that is no statistic: without interval and sample size."""
    return Finding(name, Figure("", "", "", Estimate(value, math.nan, math.nan, 0), unit))


def _sections(run: Mapping[str, Any], findings: Sequence[Finding], folder: Path) -> Iterator[str]:
    """Yield the parts of `report.md`."""
    asked = [finding.is_met for finding in findings if finding.is_met is not None]
    seconds = sum(phase["seconds"] for phase in run["phases"])
    peak = max(phase["peak_memory_gib"] for phase in run["phases"])
    yield f"# lit_rlhf demo ({run['scale']}, seed {run['seed']})"
    yield (
        f"{sum(asked)} of {len(asked)} targets met. {seconds / 60:.1f} minutes, {peak:.2f} GiB at "
        f"the peak, precision {run['precision']}."
    )
    header = ["figure", "value", "95 % interval", "n", "target", "met"]
    yield markdown_table(header, map(_cells, findings))
    yield (
        "More: [the policies](evaluate/policies/report.md) against each other and against best of "
        "n, [their responses side by side](evaluate/policies/report.html), "
        "[the reward model](evaluate/rewards/report.md)."
    )
    for caption, file in PICTURES.items():
        if (folder / file).exists():
            yield f"![{caption}]({file})"
    with (folder / "evaluate" / "policies" / "samples.jsonl").open(encoding="utf-8") as lines:
        for sample in map(json.loads, itertools.islice(lines, NUM_SHOWN)):
            texts = [f"- {name}: {markdown_cell(sample[name])}" for name in ("sft", "dpo", "ppo")]
            yield "\n".join([markdown_cell(sample["prompt"]), "", *texts])
    rows = [
        [phase["name"], f"{phase['seconds']:.0f}", f"{phase['peak_memory_gib']:.2f}"]
        for phase in run["phases"]
    ]
    yield markdown_table(["command", "seconds", "memory at the peak, GiB"], rows)
    yield "\n".join(["The same by hand:", "", "```", *run["commands"], "```"])


def _cells(finding: Finding) -> list[str]:
    n = finding.figure.estimate.n
    met = {True: "yes", False: "**no**", None: ""}[finding.is_met]
    return [finding.name, *finding.figure.shown(), str(n or ""), finding.target, met]
