"""How cost grows: one forward and backward, and one generation, over lengths, rows and groups.

python -m benchmarks.growth

Each point is a process of its own, for its peak memory; writes benchmarks/growth.json and draws
docs/growth.png out of it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import pyplot

from benchmarks.workloads import MODEL
from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.cpu import install
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.rollout import Sampling, TorchGenerator

PICTURE = Path(__file__).parent.parent / "docs" / "growth.png"
POINTS = Path(__file__).parent / "growth.json"
LENGTHS = (32, 128, 512)
ROWS = (1, 8, 32, 128)
GROUPS = (1, 4, 16)
QUANTITIES = {"seconds": "seconds", "gib": "peak memory, GiB"}


class Series(NamedTuple):
    """One curve: what is measured at each of `values`, on the axis that grows."""

    axis: str
    values: tuple[int, ...]
    measure: Callable[[int], float]


def train(num_rows: int, prompt: int, response: int, *, is_plain: bool = False) -> float:
    """Time a forward and backward over rows that share their prompt; the best of two."""
    policy = PolicyModel(
        load_causal_lm(MODEL), packing_width=None if is_plain else DEFAULT_WIDTH
    ).train()
    install(policy)
    ids = torch.randint(100, 40_000, (num_rows, prompt + response))
    ids[:, :prompt] = torch.randint(100, 40_000, (prompt,))
    lengths = torch.full((num_rows,), prompt + response)
    mask = (torch.arange(prompt + response) >= prompt).expand(num_rows, -1)
    seconds = []
    for _ in range(2):
        policy.zero_grad()
        start = time.perf_counter()
        policy(TokenRows(ids, lengths, mask)).logprobs.sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def generate(num_rows: int, prompt: int, response: int) -> float:
    """Time a generation of exactly so many tokens; the best of two."""
    policy = PolicyModel(load_causal_lm(MODEL)).eval()
    ids = torch.randint(100, 40_000, (num_rows, prompt))
    prompts = PromptBatch(
        ids, torch.full((num_rows,), prompt), torch.arange(num_rows), [""] * num_rows, [{}]
    )
    sampling = Sampling(max_new_tokens=response, min_new_tokens=response)
    seconds = []
    for seed in range(2):
        start = time.perf_counter()
        TorchGenerator()(policy, prompts, sampling, stop_ids=[2], seed=seed)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


SERIES = {
    "train, 4 rows": Series("response tokens", LENGTHS, lambda n: train(4, 16, n)),
    "generate, 8 rows": Series("response tokens", LENGTHS, lambda n: generate(8, 16, n)),
    "train, 32 tokens": Series("rows", ROWS, lambda n: train(n, 16, 32)),
    "generate, 32 tokens": Series("rows", ROWS, lambda n: generate(n, 16, 32)),
    "train, shared prompt of 256": Series("samples a prompt", GROUPS, lambda n: train(n, 256, 32)),
    "train, prompt of 256 repeated": Series(
        "samples a prompt", GROUPS, lambda n: train(n, 256, 32, is_plain=True)
    ),
}


def point(name: str, value: int) -> dict[str, float]:
    """Measure one point in this process: seconds, and the peak in GiB."""
    seconds = SERIES[name].measure(value)
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    """Measure all points, each in a process, and draw them."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(point(sys.argv[1], int(sys.argv[2]))) + "\n")
        return
    points = {
        name: [_in_a_process(name, value) for value in series.values]
        for name, series in SERIES.items()
    }
    POINTS.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
    draw(points)


def draw(points: dict[str, list[dict[str, float]]]) -> None:
    """Draw the points of each series, seconds above memory."""
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6), layout="constrained")
    columns = list(dict.fromkeys(series.axis for series in SERIES.values()))
    for name, (axis, values, _) in SERIES.items():
        for row, (quantity, label) in enumerate(QUANTITIES.items()):
            plot = axes[row, columns.index(axis)]
            plot.plot(values, [one[quantity] for one in points[name]], "o-", label=name)
            plot.set(xscale="log", xlabel=axis, ylabel=label)
            plot.set_xticks(values, [str(value) for value in values])
            plot.minorticks_off()
            plot.legend(fontsize="small")
    for plot in axes.flat:
        plot.set_ylim(0, None)
    figure.savefig(PICTURE, dpi=90)


def _in_a_process(name: str, value: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", name, str(value)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    sys.stderr.write(f"{name} {value}: {measured}\n")
    return measured


if __name__ == "__main__":
    main()
