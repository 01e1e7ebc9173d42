"""docs/benchmarks.md out of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS

_HEAD = """# Benchmarks

`make bench` writes this page. One process a side, sides by turns; a ratio is that of two rounds
next to each other, per row, pair, response or token; the table has the median and the range of
the ratios over {rounds} rounds after one that is thrown away, and the largest resident memory of
each process. SmolLM2-135M on {cpu}, 2 cores; torch {torch}, transformers {transformers}; a
bf16 matrix product of 2048 ran at {bf16_gflops:.0f} GFLOP/s. TRL 1.16.0, for PPO 1.12.0, the last
that has it, with weights in bf16, its fastest setting here; ours computes in bf16 on float32
weights. SFT, reward model and DPO made the same first step on both sides before (float32, the same
rows: loss and gradient norm within 0.1 %).

| workload | speed | range | asked | memory | asked | seconds, ours / peer | GiB, ours / peer |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def write_table(results: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        results: of `benchmarks.run`, by the workload's name, with "machine".
        path: of the page.
    """
    measured = [workload for workload in WORKLOADS if workload.name in results]
    rounds = min(results[workload.name]["rounds"] for workload in measured)
    lines = [_HEAD.format(rounds=rounds, **results["machine"])]
    for workload in measured:
        result = results[workload.name]
        low, high = result["speed_range"]
        asked = "" if workload.memory_target is None else f"{workload.memory_target:g}x"
        seconds = " / ".join(f"{value:.2f}" for value in result["seconds"])
        memory = " / ".join(f"{value:.2f}" for value in result["peak_gib"])
        lines.append(
            f"| {workload.title} | {_marked(result['speed'], workload.speed_target)} | "
            f"{low:.2f} to {high:.2f} | {workload.speed_target:g}x | {result['memory']:.2f}x | "
            f"{asked} | {seconds} | {memory} |\n"
        )
    path.write_text("".join(lines), encoding="utf-8")


def _marked(speed: float, target: float) -> str:
    return f"**{speed:.2f}x**" if speed >= target else f"{speed:.2f}x"
