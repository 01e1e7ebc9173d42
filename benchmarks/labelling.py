"""How fast the labeling page's server answers 50 labelers at once, on SQLite and on PostgreSQL.

python -m benchmarks.labelling [--seconds 20]

Simulated labelers ask for tasks and send judgments over the loopback: as fast as they can, and one
a second each. Prints a table for docs/guides/labeling-page.md. A request is a claim of tasks or a
submitted judgment; labelers and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.store import FeedbackStore
from tests.labelling.serving import served
from tests.labelling.simulated import Habits, Labeler
from tests.support.postgres import postgres_server

NUM_LABELERS = 50
NUM_TASKS = 4_000
PACES = {"as fast as they can": 0.0, "one a second each": 1.0}
_HEAD = """| database | judgments | requests/s | claim, median and p99 | submit, median and p99 |
| --- | --- | --- | --- | --- |
"""


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """Yield the URL of an empty database of each kind."""
    with tempfile.TemporaryDirectory() as folder, postgres_server(is_durable=True) as url:
        yield {"SQLite": f"sqlite:///{Path(folder) / 'feedback.db'}", "PostgreSQL": url}


def measure(url: str, pause_s: float, seconds: float) -> list[str]:
    """Return requests per second and the times of claims and of judgments."""
    tasks = (
        JudgedTask(f"prompt {i} {pause_s}", ("one " * 50, "two " * 50), (), None, {})
        for i in range(NUM_TASKS)
    )
    with FeedbackStore.open(url) as store, served(url) as server:
        store.add_tasks(tasks, slots=5)
        people = [
            Labeler(f"{pause_s} {i}", store, server.address, Habits(pause_s=pause_s), 600)
            for i in range(NUM_LABELERS)
        ]
        begun = time.monotonic()
        asyncio.run(_work(people, begun + seconds))
        spent = time.monotonic() - begun
    took = {
        what: 1000 * np.concatenate([person.seconds[what] for person in people])
        for what in ("claim", "submit")
    }
    rate = sum(map(len, took.values())) / spent
    times = [np.percentile(values, (50, 99)) for values in took.values()]
    return [f"{rate:.0f}", *(f"{median:.0f} and {high:.0f} ms" for median, high in times)]


async def _work(people: list[Labeler], end: float) -> None:
    await asyncio.gather(*(person.work(lambda: time.monotonic() > end) for person in people))


def main() -> None:
    """Measure both databases at both paces, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    options = parser.parse_args()
    sys.stdout.write(_HEAD)
    with databases() as urls:
        for (name, url), (pace, pause_s) in itertools.product(urls.items(), PACES.items()):
            cells = [name, pace, *measure(url, pause_s, options.seconds)]
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
