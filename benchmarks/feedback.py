"""A feedback store of a million judgments: seconds and peak memory of what is done with it.

python -m benchmarks.feedback [--tasks 200000] [--folder runs/feedback]

Writes comparisons that five of 50 simulated labelers judged, then runs each step in a process of
its own: import, agreement, quality of the labelers, disagreements, aggregation, the next task, and
export. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lit_rlhf.feedback.aggregation import BetaMean, OneCoinDawidSkene
from lit_rlhf.feedback.agreement_report import read_agreement
from lit_rlhf.feedback.disagreements import most_split
from lit_rlhf.feedback.exchange import training_row
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.quality import labeler_quality
from lit_rlhf.feedback.records import JudgedGroup, parse_judged_group
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.feedback_command import feedback_command

NUM_LABELERS = 50
NUM_JUDGMENTS = 5  # of each task
NUM_CLAIMS = 500


def write_rows(file: Path, num_tasks: int) -> None:
    """Write judged comparisons of about 400 characters."""
    draw = random.Random(0)
    words = [f"{draw.getrandbits(30):x}" for _ in range(2_000)]
    accuracies = [draw.uniform(0.5, 0.95) for _ in range(NUM_LABELERS)]
    with file.open("w", encoding="utf-8") as stream:
        for task in range(num_tasks):
            said = [
                {
                    "outcome": "judged",
                    "ranks": [1, 2] if draw.random() < accuracies[labeler] else [2, 1],
                    "labeler": f"labeler {labeler}",
                    "submitted_at": 1.7e9 + 60 * task,
                }
                for labeler in draw.sample(range(NUM_LABELERS), NUM_JUDGMENTS)
            ]
            first, second = (" ".join(draw.choices(words, k=20)) for _ in range(2))
            row = {"prompt": f"prompt {task}", "responses": [first, second], "judgments": said}
            stream.write(json.dumps(row) + "\n")


def add(folder: Path) -> str:
    """Import the file, and ask one more labeler about every task."""
    words = ["import", str(folder / "rows.jsonl"), str(folder / "feedback.db"), "--slots", "1"]
    feedback_command(words)
    return ""


def agree(folder: Path) -> str:
    """Compute every measure of agreement with its interval."""
    with _open(folder) as store, store.database.reading() as connection:
        return str(read_agreement(connection)[0].value)


def assess(folder: Path) -> str:
    """Compute the quality of every labeler."""
    with _open(folder) as store, store.database.reading() as connection:
        return str(labeler_quality(connection)[0].others)


def disagree(folder: Path) -> str:
    """Find the ten tasks that split labelers most."""
    with _open(folder) as store, store.database.reading() as connection:
        return f"{most_split(connection, 10)[0].split:.2f}"


def aggregate(folder: Path) -> str:
    """Turn every task into pairs with probabilities, by the default method."""
    method = BetaMean()
    return f"{sum(len(method.pairs(group)) for group in _groups(folder)):,} pairs"


def aggregate_by_labeler(folder: Path) -> str:
    """Learn the labelers' accuracies, then do the same."""
    groups = list(_groups(folder))
    method = OneCoinDawidSkene().fit(groups)
    return f"{sum(len(method.pairs(group)) for group in groups):,} pairs"


def claim(folder: Path) -> str:
    """Claim the next task and judge it, as 50 labelers who take turns."""
    return _claims(folder, [f"labeler {number}" for number in range(NUM_LABELERS)])


def claim_behind(folder: Path) -> str:
    """Claim as one labeler who has judged nearly everything that is still open for others."""
    with _open(folder) as store:
        store.add_labeler("ahead")
        with store.database.writing() as connection:
            connection.exec_driver_sql(
                "INSERT INTO judgments (id, task_id, labeler_id, outcome, is_gold, received_at,"
                " valid_from) SELECT 'ahead ' || t.id, t.id, l.id, 'tie', 0, 0, 0 FROM tasks t,"
                " labelers l WHERE l.name = 'ahead' AND t.id <= (SELECT max(id) FROM tasks) - 2000"
            )
    return _claims(folder, ["ahead"])


def export(folder: Path) -> str:
    """Write everything as JSON lines."""
    feedback_command(["export", str(folder / "feedback.db"), str(folder / "out.jsonl")])
    return ""


STEPS = {
    "import": add,
    "agreement": agree,
    "quality of 50 labelers": assess,
    "disagreements": disagree,
    "aggregation, Beta mean": aggregate,
    "aggregation, one-coin Dawid-Skene": aggregate_by_labeler,
    "export": export,
    "next task, 50 labelers": claim,
    "next task, one far ahead": claim_behind,
}


def _open(folder: Path) -> FeedbackStore:
    return FeedbackStore.open(str(folder / "feedback.db"), create=False)


def _groups(folder: Path) -> Iterator[JudgedGroup]:
    with _open(folder) as store:
        for task in store.judged_tasks():
            row = training_row(task)
            if row is not None:
                yield parse_judged_group(row, "")


def _claims(folder: Path, labelers: list[str]) -> str:
    claims, submits = [], []
    with _open(folder) as store:
        for number in range(NUM_CLAIMS):
            labeler = labelers[number % len(labelers)]
            start = time.perf_counter()
            (task,) = store.claim(labeler)
            middle = time.perf_counter()
            store.submit(task.id, Judgment("tie", labeler=labeler, id=str(uuid.uuid4())))
            claims.append(1_000 * (middle - start))
            submits.append(1_000 * (time.perf_counter() - middle))
    (half, most), sent = np.quantile(claims, (0.5, 0.99)), np.quantile(submits, 0.99)
    return f"median {half:.1f} ms, 99th percentile {most:.1f} ms (submit {sent:.1f} ms)"


def main() -> None:
    """Run all steps, each in a process, and print the table."""
    parser = argparse.ArgumentParser(description="A feedback store of a million judgments.")
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/feedback"))
    parser.add_argument("--step", help="run one step in this process")
    options = parser.parse_args()
    folder: Path = options.folder
    if options.step:
        start = time.perf_counter()
        found = STEPS[options.step](folder)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        sys.stdout.write(f"| {options.step} | {seconds:.1f} | {peak:,.0f} | {found} |\n")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("feedback.db*"):
        file.unlink()
    write_rows(folder / "rows.jsonl", options.tasks)
    sys.stdout.write("| step | seconds | peak memory, MiB | |\n| --- | --- | --- | --- |\n")
    sys.stdout.flush()
    for step in STEPS:
        words = ["--folder", str(folder), "--step", step]
        subprocess.run([sys.executable, "-m", "benchmarks.feedback", *words], check=True)


if __name__ == "__main__":
    main()
