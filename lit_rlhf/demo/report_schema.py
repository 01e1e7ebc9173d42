"""What the demonstration's report holds: the schema of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_rlhf.errors import DataError


@dataclass(frozen=True)
class Figure:
    """One number of the report.

    Attributes:
        name: what it measures; unique within a report.
        value: in `unit`; NaN when it could not be measured.
        unit: such as "%", "nats" or "" for a plain number.
        target: what it should be, in words; empty when nothing is asked of it.
        met: whether the target is met; None without a target.
        interval: ends of the 95 % interval, in `unit`; None where there is none.
        n: number of samples (prompts, pairs) behind it; None where it is no statistic.
    """

    name: str
    value: float
    unit: str = ""
    target: str = ""
    met: bool | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None


@dataclass(frozen=True)
class Curve:
    """Values over PPO iterations.

    Attributes:
        iterations: at which the values were measured, from 1.
        values: as many.
    """

    iterations: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class PPOCurves:
    """What happened during PPO.

    Attributes:
        reward: mean score by the reward model that PPO trains against.
        validation_reward: mean score by the reward model that it never trains against.
        vader: mean VADER score.
        kl: to the SFT policy, nats per response.
        kl_coefficient: that each iteration's rewards were penalised with.
        kl_target: what the controller steers to, nats per response; None without a controller.
    """

    reward: Curve
    validation_reward: Curve
    vader: Curve
    kl: Curve
    kl_coefficient: Curve
    kl_target: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """The pairs for which the reward model predicted about the same probability.

    Attributes:
        predicted: mean predicted probability that the first response is better.
        human: share of people who said so.
        weight: how many pairs, weighted.
    """

    predicted: float
    human: float
    weight: float


@dataclass(frozen=True)
class SampleResponse:
    """A response of one policy, with its scores by name."""

    policy: str
    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """A prompt and what each policy made of it, the SFT policy first."""

    prompt: str
    responses: tuple[SampleResponse, ...]


@dataclass(frozen=True)
class Match:
    """One policy against another by the validation reward, on the same prompts.

    Attributes:
        opponent: the other policy.
        win_rate: share of prompts on which its response is the better one, ties counted half.
        interval: ends of the 95 % interval, in [0, 1].
        n: number of prompts.
    """

    opponent: str
    win_rate: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Standing:
    """How far a policy is from SFT, and how it does against the others.

    Attributes:
        policy: its name.
        kl: to the SFT policy, nats per response.
        validation_reward: mean over prompts.
        matches: against each of the others, in the order of the standings.
    """

    policy: str
    kl: float
    validation_reward: float
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Phase:
    """A part of the run, the seconds that it took and its process's largest resident memory."""

    name: str
    seconds: float
    peak_memory_gib: float


@dataclass(frozen=True)
class Report:
    """All that the report holds.

    Attributes:
        title: its headline.
        figures: in the order in which they are shown.
        curves: of PPO.
        calibration: bins of the reward model's predictions; empty bins may be left out.
        samples: before and after.
        phases: in the order in which they ran.
        precision: of every phase, as the Trainer's flag spells it.
        seed: of the whole run.
        commands: that a user would type to run the same phases one by one.
        versions: of the packages that matter.
        notes: sentences on what falls short, and why.
        standings: the policies against each other, by rising KL.
    """

    title: str
    figures: tuple[Figure, ...]
    curves: PPOCurves
    calibration: tuple[CalibrationBin, ...]
    samples: tuple[Sample, ...]
    phases: tuple[Phase, ...]
    precision: str
    seed: int
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    standings: tuple[Standing, ...] = field(default=())

    @property
    def peak_memory_gib(self) -> float:
        """The largest resident memory of any phase's process."""
        return max(phase.peak_memory_gib for phase in self.phases)


def parse_report(data: Mapping[str, Any]) -> Report:
    """Build a report from plain dictionaries and lists, as `report.json` holds them.

    Raises:
        DataError: a field is missing or unknown.
    """
    try:
        return Report(
            **{
                **data,
                "figures": tuple(_parse_figure(figure) for figure in data["figures"]),
                "curves": _parse_curves(data["curves"]),
                "calibration": tuple(CalibrationBin(**row) for row in data["calibration"]),
                "samples": tuple(_parse_sample(sample) for sample in data["samples"]),
                "phases": tuple(Phase(**phase) for phase in data["phases"]),
                "commands": tuple(data["commands"]),
                "notes": tuple(data.get("notes", ())),
                "standings": tuple(_parse_standing(row) for row in data.get("standings", ())),
            }
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the report's data do not fit lit_rlhf.demo.report_schema.Report: {error}"
        ) from error


def _parse_figure(data: Mapping[str, Any]) -> Figure:
    interval = data.get("interval")
    value = math.nan if data["value"] is None else data["value"]
    return Figure(
        **{**data, "value": value, "interval": None if interval is None else tuple(interval)}
    )


def _parse_curves(data: Mapping[str, Any]) -> PPOCurves:
    curves = {name: _parse_curve(entry) for name, entry in data.items() if name != "kl_target"}
    return PPOCurves(**curves, kl_target=data["kl_target"])


def _parse_curve(data: Mapping[str, Any]) -> Curve:
    values = (math.nan if value is None else value for value in data["values"])
    return Curve(tuple(data["iterations"]), tuple(values))


def _parse_standing(data: Mapping[str, Any]) -> Standing:
    matches = (Match(**{**row, "interval": tuple(row["interval"])}) for row in data["matches"])
    return Standing(**{**data, "matches": tuple(matches)})


def _parse_sample(data: Mapping[str, Any]) -> Sample:
    return Sample(data["prompt"], tuple(SampleResponse(**row) for row in data["responses"]))
