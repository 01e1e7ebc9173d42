"""docs/benchmarks.md out of the results: a table a machine, then `notes.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload

NOTES = Path(__file__).parent / "notes.md"
_HEAD = """# Benchmarks

`make bench` writes this page: SmolLM2-135M on 2 cores, a table for each precision that was run. One
process a side, sides by turns. A ratio is that of two rounds next to each other, per row, pair,
response or token; the table has the median and the range over the rounds, after one that is thrown
away, and the largest resident memory of each process. **Bold**: the figure asked for is reached.

The peers are TRL 1.16.0 (for PPO 1.12.0, the last that has it), transformers' `generate`, and
vLLM 0.32 for CPU; all in the precision that the CPU multiplies faster. SFT, reward model and DPO
made the same first step on both sides before (float32, the same rows): the largest relative
difference of loss and gradient norm is in the table. DPO's steps are charged with their share of
the reference's log-probabilities, computed before the first one.
"""
_MACHINE = """
## {precision}

{cpu}; torch {torch}, transformers {transformers}; a matrix product of 2048 ran at {gflops:.0f}
GFLOP/s, a copy at {copy_gb:.1f} GB/s.

| workload | speed | range | asked | memory | asked | seconds | GiB | limit | first step | rounds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
_FOOT = """
*Seconds* and *GiB*: ours / the peer's. *Limit*: the step's model FLOPs (6 times the weights for
every distinct token, the vocabulary for response tokens alone; nothing that is computed again) per
second, over the rate of a matrix product of 2048, for a second before each round. For generation
it is twice the weights for every token; behind the stroke the bytes that its steps must read (all
weights, each row's cache) per second, over the rate of the copy.

"""


def write_table(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the page.

    Args:
        results: for each precision those of `benchmarks.run`, by the workload's name, with
            "machine".
        path: of the page.
    """
    lines = [_HEAD]
    for of_precision in results:
        machine = of_precision["machine"]
        lines.append(_MACHINE.format(**machine))
        lines += [
            _line(workload, of_precision[workload.name], machine)
            for workload in WORKLOADS
            if workload.name in of_precision
        ]
    path.write_text("".join([*lines, _FOOT, NOTES.read_text(encoding="utf-8")]), encoding="utf-8")


def _line(workload: Workload, result: dict[str, Any], machine: dict[str, Any]) -> str:
    low, high = result["speed_range"]
    asked = "" if workload.memory_target is None else f"{workload.memory_target:g}x"
    memory = f"{result['memory']:.2f}x"
    if workload.memory_target is not None and result["memory"] <= workload.memory_target:
        memory = f"**{memory}**"
    speed = f"{result['speed']:.2f}x"
    if result["speed"] >= workload.speed_target:
        speed = f"**{speed}**"
    first = result.get("first_step")
    limits = [
        # Results from before each round had its own: the machine's.
        ("flops_per_second", result.get("product_per_second", machine["gflops"] * 1e9)),
        ("bytes_per_second", machine["copy_gb"] * 1e9),
    ]
    shares = [f"{result[name] / limit:.0%}" for name, limit in limits if result.get(name)]
    cells = [
        workload.title,
        speed,
        f"{low:.2f} to {high:.2f}",
        f"{workload.speed_target:g}x",
        memory,
        asked,
        " / ".join(f"{value:.2f}" for value in result["seconds"]),
        " / ".join(f"{value:.2f}" for value in result["peak_gib"]),
        " / ".join(shares),
        f"{max(first.values()):.0e}" if first else "",
        str(result["rounds"]),
    ]
    return f"| {' | '.join(cells)} |\n"
