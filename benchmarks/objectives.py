"""Preference losses, advantage estimators and policy losses for one small budget, on real data.

python -m benchmarks.objectives [--only NAME ...] [--budget quick] [--output runs/objectives]

All start from one SFT policy of the demonstration's model and ratings. A preference loss sees the
same judged groups once, an estimator the same number of responses, with the same reward model. The
policy that each leaves answers held-out prompts; a reward model of other texts and raters, which
nothing trained against, and VADER judge the answers. Intervals are bootstrapped over prompts.

Each row is a file in `OUTPUT/rows/`; rows that are there are not made again, so that a run that
ended goes on. `OUTPUT/table.md` has them all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_rlhf.cache import cache_folder
from lit_rlhf.child_command import run_command
from lit_rlhf.demo.command import DATA_SEED
from lit_rlhf.demo.datasets import write_datasets
from lit_rlhf.demo.loop import COMMANDS, SCALES, Scale, command_words, model_of
from lit_rlhf.demo.model import prepare_model
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.shipped import configs_folder
from lit_rlhf.whole_files import write_text_whole

START = "sft"
COLUMNS = ("validation", "vader", "reward", "kl", "length")
_RESPONSES_OF_FRAGMENTS = 32  # prompts times samples of a batch, in each file of configs/advantage


class Budget(NamedTuple):
    """How much each row trains.

    Attributes:
        scale: of the demonstration, for the models that all rows start from.
        groups: judged groups of 32 texts, for a preference loss.
        batches: of responses, for an estimator and online DPO.
        responses: in a batch.
        prompts: held-out ones, on which all are compared.
    """

    scale: str
    groups: int
    batches: int
    responses: int
    prompts: int


BUDGETS = {
    "smoke": Budget("smoke", groups=4, batches=3, responses=16, prompts=12),
    "quick": Budget("quick", groups=20, batches=9, responses=64, prompts=128),
    "full": Budget("full", groups=160, batches=72, responses=64, prompts=256),
}


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the row.
        phase: whose command trains it, "" for the policy that all start from.
        fragment: its file in `configs/`, "" for the phase's default.
    """

    name: str
    phase: str
    fragment: str


def entries() -> dict[str, Entry]:
    """Return all rows by name: the start, each phase's default, and each file of objectives."""
    found = [Entry(START, "", ""), Entry("dpo", "dpo", ""), Entry("online-dpo", "online-dpo", "")]
    found.append(Entry("gae", "ppo", ""))
    for folder, phase in (("loss", "dpo"), ("advantage", "ppo"), ("policy_loss", "ppo")):
        for file in sorted((configs_folder() / folder).glob("*.yaml")):
            found.append(Entry(file.stem, phase, f"{folder}/{file.name}"))
    return {entry.name: entry for entry in found}


class Bench:
    """One run of the benchmark.

    Args:
        budget: of each row.
        folder: of models, rows and table.
        seed: of every command.
    """

    def __init__(self, budget: Budget, folder: Path, seed: int) -> None:
        self.budget, self.folder, self.seed = budget, folder, seed
        self.data = cache_folder() / "data"
        self.precision = choose_precision()
        self.scale: Scale = SCALES[budget.scale]

    def prepare(self) -> None:
        """Make what all rows start from, where it is not there yet."""
        prepare_model()
        write_datasets(self.data, DATA_SEED)
        for (title, command), name in zip(COMMANDS[:3], ("sft", "reward", "judge"), strict=True):
            if not Path(model_of(self.folder, name)).exists():
                run_command(title, self._words(command))
        labels = self.folder / "labels.jsonl"
        if not labels.exists():
            groups = (self.data / "reward" / "train.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [row for line in groups for row in labelled(json.loads(line))]
            write_text_whole(labels, "".join(json.dumps(row) + "\n" for row in rows))

    def measure(self, entry: Entry) -> dict[str, Any]:
        """Train a row and evaluate it."""
        seconds = run_command(entry.name, self.training(entry)).seconds if entry.phase else 0.0
        output = self.folder / "evaluate" / entry.name
        # `reward` and `judge` judge what is called `policy`.
        policy = model_of(self.folder, entry.name)
        words = [
            *("evaluate", "policies", f"policy={policy}", f"--reference={self.start}"),
            *(f"--judge=reward={model_of(self.folder, 'reward')}",),
            *(f"--judge=validation={model_of(self.folder, 'judge')}",),
            "--judge=vader=function:lit_rlhf.demo.vader.vader_scores",
            f"--prompts={self.data / 'ppo' / 'test.jsonl'}",
            f"--num-prompts={self.budget.prompts}",
            *("--max-new-tokens=24", f"--seed={self.seed}", f"--precision={self.precision}"),
            f"--output={output}",
        ]
        run_command(f"{entry.name}: evaluation", words)
        content = json.loads((output / "report.json").read_text(encoding="utf-8"))
        return {
            "name": entry.name,
            "seconds": seconds,
            **figures_of([Figure.from_json(row) for row in content["figures"]]),
        }

    @property
    def start(self) -> str:
        """The policy that all rows start from."""
        return model_of(self.folder, START)

    def training(self, entry: Entry) -> list[str]:
        """Return the words of the command that trains a row."""
        reward, judge = (model_of(self.folder, name) for name in ("reward", "judge"))
        options = f" --model.policy={self.start}"
        if entry.phase != "dpo":
            options += f" --model.reward.init_args.model={reward}"
            options += f" --model.judges.validation.init_args.model={judge}"
        # Online DPO has no file of the demonstration: what it needs of PPO's is below.
        phase = entry.phase if entry.phase != "online-dpo" else ""
        words = self._words(f"{phase} fit{options}") if phase else self._online(options)
        if entry.fragment:
            words.append(f"--config={configs_folder() / entry.fragment}")
        words.append(f"--trainer.logger.init_args.name={entry.name}")
        words += ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
        return words + self._sizes(entry)

    def _online(self, options: str) -> list[str]:
        words = self._words(f"ppo fit{options}")
        plain = [word for word in words[2:] if not word.startswith("--config=")]
        file = configs_folder() / "online_dpo.yaml"
        settings = ["--model.optimizer.learning_rate=2e-5", "--model.sampling.max_new_tokens=24"]
        return ["online-dpo", "fit", f"--config={file}", *plain, *settings]

    def _sizes(self, entry: Entry) -> list[str]:
        budget = self.budget
        if entry.name == "kto":
            file = self.folder / "labels.jsonl"
            labels = [f"--data.{split}={file}" for split in ("train", "validation")]
            labels += ["--data.limit_validation=32", "--data.batch_size=32"]
            return [*labels, f"--data.limit_train={32 * budget.groups}"]
        if entry.phase == "dpo":
            return [f"--data.limit_train={budget.groups}"]
        share = 0.5  # of online DPO, two samples a prompt
        if entry.phase == "ppo":
            fragment = {} if not entry.fragment else _read_yaml(entry.fragment)
            own = fragment.get("data", {}).get("batch_size", _RESPONSES_OF_FRAGMENTS)
            share = own / _RESPONSES_OF_FRAGMENTS
        batch_size = int(budget.responses * share)
        batches = f"--trainer.limit_train_batches={budget.batches}"
        return [batches, f"--data.batch_size={batch_size}"]

    def _words(self, command: str) -> list[str]:
        return command_words(command, self.scale, self.folder, self.seed, self.precision)


def labelled(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a judged group as KTO's rows: its better half by the mean rating is good."""
    means = [
        sum(known) / len(known) if (known := [r for r in row if r is not None]) else 0.0
        for row in zip(*group["ratings"], strict=True)
    ]
    middle = sorted(means)[len(means) // 2]
    return [
        {"prompt": group["prompt"], "response": response, "label": mean >= middle}
        for response, mean in zip(group["responses"], means, strict=True)
    ]


def figures_of(figures: list[Figure]) -> dict[str, list[float]]:
    """Return value, low and high of each column, from the figures of one policy's evaluation."""
    found = {}
    for figure in figures:
        name = figure.judge if figure.metric == "score" else figure.metric
        if name in COLUMNS:
            found[name] = [*figure.estimate[:3]]
    return found


def table(rows: list[Mapping[str, Any]]) -> str:
    """Return the table, by the validation reward."""
    lines = [f"| objective | {' | '.join(COLUMNS)} | seconds |"]
    lines.append("| --- |" + " --- |" * (len(COLUMNS) + 1))
    for row in sorted(rows, key=lambda row: -row["validation"][0]):
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(*row[name]) for name in COLUMNS]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _read_yaml(fragment: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((configs_folder() / fragment).read_text("utf-8"))
    return content


def main() -> None:
    """Measure the rows that are not there, and write the table."""
    known = entries()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives")
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--budget", choices=BUDGETS, default="quick")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/objectives"))
    options = parser.parse_args()
    # Rows of one budget and seed are compared; others have a folder of their own.
    folder = options.output / f"{options.budget}-{options.seed}"
    bench = Bench(BUDGETS[options.budget], folder, options.seed)
    bench.prepare()
    for name in options.only or known:
        file = folder / "rows" / f"{name}.json"
        if not file.exists():
            sys.stdout.write(f"\n{name}\n")
            sys.stdout.flush()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text_whole(file, json.dumps(bench.measure(known[name])) + "\n")
            if known[name].phase:  # a gigabyte and a half
                shutil.rmtree(folder / name)
    rows = [json.loads(file.read_text("utf-8")) for file in (folder / "rows").glob("*.json")]
    write_text_whole(folder / "table.md", table(rows))
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
