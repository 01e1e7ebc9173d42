"""docs/benchmarks.md out of the results: a table a machine, then `notes.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload

NOTES = Path(__file__).parent / "notes.md"
_HEAD = """# Benchmarks

How much faster does lit_rlhf train SmolLM2-135M on two CPU cores, and in how much memory? 2x means
half the time of the peer, 0.5x half its peak memory. The lowest and the highest row of each table:

| precision | what | against | speed | memory |
| --- | --- | --- | --- | --- |
"""
_HOW = """
Nothing here was measured on a GPU. `make bench` measures it all on your machine and writes this
page:

- Each side is a process of its own, and the sides take turns. The first round is thrown away.
- A ratio compares two rounds next to each other, per row, pair, response or token. The tables have
  the median ratio and its range over the rounds.
- *Memory* is the largest resident memory of the process.
- *Target* is the figure that was asked for. **Bold** figures reach it.
- *Seconds* and *GiB* are ours/the peer's.
- *First step*: SFT, reward model and DPO first make one step in float32 on the same rows. This is
  the largest relative difference of loss and gradient norm between the sides.
- DPO's steps include their share of the reference's log-probabilities.

The peers are TRL 1.16.0 (PPO: 1.12.0, the last that has it), transformers' `generate`, and
vLLM 0.32 for CPU. Both sides compute in the precision that the CPU multiplies faster.
"""
_MACHINE = """
## {precision}

{cpu}; torch {torch}, transformers {transformers}; {rounds} rounds. A matrix product of 2048 ran at
{gflops:.0f} GFLOP/s, a copy at {copy_gb:.1f} GB/s.

| workload | speed | range | target | memory | target | seconds | GiB | limit | first step |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
_FOOT = """
*Limit* is how close our step comes to what the CPU can do: its model FLOPs per second over the rate
of a matrix product of 2048. FLOPs are 6 times the weights for each distinct token, with the
vocabulary for response tokens alone. For generation they are twice the weights for each token. The
second number is the bytes that generation must read per second, over the rate of a copy.

"""
# What the rows of the first table sum up: its words, and the workloads' peers and kind.
_GROUPS = (
    ("training", "TRL", ("trl", "trl-ppo"), False),
    ("generation", "`generate`", ("trl",), True),
    ("generation", "vLLM", ("vllm",), True),
)


def write_table(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the page.

    Args:
        results: for each precision those of `benchmarks.run`, by the workload's name, with
            "machine".
        path: of the page.
    """
    lines = [_HEAD, *_summary(results), _HOW]
    for of_precision in results:
        machine = of_precision["machine"]
        rounds = [result["rounds"] for name, result in of_precision.items() if name != "machine"]
        lines.append(_MACHINE.format(**machine, rounds=min(rounds, default=0)))
        lines += [
            _line(workload, of_precision[workload.name], machine)
            for workload in WORKLOADS
            if workload.name in of_precision
        ]
    path.write_text("".join([*lines, _FOOT, NOTES.read_text(encoding="utf-8")]), encoding="utf-8")


def _summary(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return a row for each precision and kind of peer: the range of speed and memory."""
    lines = []
    for of_precision in results:
        for what, peer, peers, generates in _GROUPS:
            found = [
                of_precision[workload.name]
                for workload in WORKLOADS
                if workload.name in of_precision
                and workload.peer in peers
                and (workload.phase == "generate") == generates
            ]
            if found:
                cells = [of_precision["machine"]["precision"], what, peer]
                cells += [_range([result[key] for result in found]) for key in ("speed", "memory")]
                lines.append(f"| {' | '.join(cells)} |\n")
    return lines


def _range(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.2f}x", f"{max(ratios):.2f}x"
    return low if low == high else f"{low} to {high}"


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
        "/".join(f"{value:.2f}" for value in result["seconds"]),
        "/".join(f"{value:.2f}" for value in result["peak_gib"]),
        "/".join(shares),
        f"{max(first.values()):.0e}" if first else "",
    ]
    return f"| {' | '.join(cells)} |\n"
