"""The arms of the proof: the same judgments and policy steps, differently spent.

    rounds   four rounds, pairs by InfoMax, samples of the newest promoted policy
    one      one round with all judgments and all policy steps
    random   four rounds, pairs at random
    sft      four rounds, pairs of what the SFT policy says

Each round's policy starts from SFT again, so that in four rounds the last policy has a quarter of
the steps behind it; arm `one` has all of them. The first of four rounds is the same in all arms,
to the last bit: nothing is known yet that could be chosen by. It is run once for each seed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.child_command import run_command
from lit_rlhf.demo.flywheel import demo_settings, prepare_models
from lit_rlhf.demo.loop import model_of
from lit_rlhf.flywheel.report import read_round, write_report
from lit_rlhf.flywheel.rounds import run_rounds
from lit_rlhf.flywheel.settings import FlywheelSettings
from lit_rlhf.flywheel.steps import read_json, write_json
from lit_rlhf.modules.precision import Precision, choose_precision

ARMS = ("rounds", "one", "random", "sft")
NUM_ROUNDS = 4
# PPO halves the responses here, whatever the reward: with the gate's own 1.5 none is promoted.
_MAX_LENGTH_RATIO = 3.0


class Scale(NamedTuple):
    """How much of everything.

    Attributes:
        num_tasks: pairs of a round, each judged by up to three raters.
        num_prompts: that a round samples, five responses each.
        iterations: of PPO in a round.
        batch_size: prompts of an iteration.
        held_out: prompts that policies are compared on.
        minutes: of a round, measured on two idle cores; None where nobody has.
    """

    num_tasks: int
    num_prompts: int
    iterations: int
    batch_size: int
    held_out: int
    minutes: float | None = None


SCALES = {
    "tiny": Scale(20, 16, 1, 16, 12),
    "small": Scale(60, 48, 8, 48, 64),
    "full": Scale(200, 192, 16, 64, 192),
}


@dataclass(frozen=True)
class Proof:
    """One run of the proof.

    Attributes:
        scale: how much.
        folder: of the models and runs.
        data: of the demonstration's data files.
    """

    scale: Scale
    folder: Path
    data: Path

    def prepare(self) -> Precision:
        """Train what all arms stand on, unless it is there; return the precision of all of it."""
        path = self.folder / "precision.json"
        if not path.exists():
            write_json(path, choose_precision())
        precision: Precision = read_json(path)
        prepare_models("quick", self.folder, 1, precision)
        return precision

    def run(self, arm: str, seed: int) -> None:
        """Run an arm with one seed, or what is left of it."""
        precision = self.prepare()
        settings = replace(self.settings(arm, seed), precision=precision)
        if settings.rounds > 1 and not settings.path.exists():
            first = replace(self.first_settings(seed), precision=precision)
            _run(first, f"first, seed {seed}")
            take_first_round(first, settings)
        _run(settings, f"{arm}, seed {seed}")
        write_report(settings)

    def drop_models(self, arm: str, seed: int) -> None:
        """Delete the models of a run that was read: a gigabyte a round."""
        for folder in self.settings(arm, seed).path.glob("round-*/*/model"):
            shutil.rmtree(folder)

    def read(self, arm: str, seed: int) -> list[dict[str, Any]]:
        """Return what each round of a finished run came to."""
        settings = self.settings(arm, seed)
        return [
            {**read_round(settings, number)._asdict(), "seconds": _seconds(settings, number)}
            for number in range(1, settings.rounds + 1)
        ]

    def settings(self, arm: str, seed: int) -> FlywheelSettings:
        """Return the settings of an arm: what is the same for all, and what is its own."""
        scale, times = self.scale, NUM_ROUNDS if arm == "one" else 1
        final = {"gold": f"reward:{model_of(self.folder, 'reward')}"}
        final["vader"] = "function:lit_rlhf.demo.vader.vader_scores"
        options = [
            f"--folder={self.folder / arm / f'seed-{seed}'}",
            f"--rounds={1 if arm == 'one' else NUM_ROUNDS}",
            f"--choice.num_tasks={times * scale.num_tasks}",
            f"--choice.acquisition={'InfoMax' if arm in ('rounds', 'sft') else 'RandomPairs'}",
            f"--samples.num_prompts={times * scale.num_prompts}",
            f"--samples.policy={'sft' if arm == 'sft' else 'newest'}",
            f"--policy.options={json.dumps(self._policy_options(times))}",
            f"--gate.num_prompts={scale.held_out}",
            f"--gate.max_length_ratio={_MAX_LENGTH_RATIO}",
            f"--gate.final_judges={json.dumps(final)}",
            f"--labeler.seed={seed}",
        ]
        return demo_settings("quick", self.folder, self.data, seed, options)

    def first_settings(self, seed: int) -> FlywheelSettings:
        """Return the settings of the first round, which the arms of four rounds have in common."""
        folder = self.folder / "first" / f"seed-{seed}"
        return replace(self.settings("random", seed), folder=str(folder), rounds=1)

    def estimate(self, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
        """Yield how much of each run is left, in words."""
        for seed in seeds:
            for arm in arms:
                settings = self.settings(arm, seed)
                done = len(list(settings.path.glob("round-*/promotion.json")))
                left = settings.rounds - done
                minutes = self.scale.minutes
                # The one round of `one` takes as long as the others' four.
                length = (NUM_ROUNDS if arm == "one" else 1) * (minutes or 0)
                about = f", some {left * length:.0f} minutes" if minutes else ""
                yield f"{arm}, seed {seed}: {done} of {settings.rounds} rounds done{about}"

    def _policy_options(self, times: int) -> dict[str, int]:
        return {
            "trainer.limit_train_batches": times * self.scale.iterations,
            "data.batch_size": self.scale.batch_size,
        }


def _run(settings: FlywheelSettings, name: str) -> None:
    run_rounds(settings, lambda line: _say(f"{name}: {line}"), run_command, waits=False)


def take_first_round(first: FlywheelSettings, settings: FlywheelSettings) -> None:
    """Copy a run of one round to where another run goes on from it, as if it were its own."""
    partial = settings.path.with_name(f"{settings.path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(first.path, partial)
    for path in partial.glob("round-01/[0-9]*-*.json"):
        text = path.read_text(encoding="utf-8").replace(first.folder, settings.folder)
        record = json.loads(text)
        inputs = record["inputs"]
        for name in ("samples", "choice"):  # what an arm does otherwise from the second round on
            if inputs.get(name) == str(getattr(first, name)):
                inputs[name] = str(getattr(settings, name))
        write_json(path, record)
    partial.rename(settings.path)


def _seconds(settings: FlywheelSettings, number: int) -> dict[str, float]:
    """Return the seconds of each step; of one that was killed, those of its last run."""
    path = settings.round_folder(number) / "timings.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["seconds"] for row in rows}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
