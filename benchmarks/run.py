"""Run workloads against their peers and write the table of docs/benchmarks.md.

python -m benchmarks.run [WORKLOAD ...] [--rounds N]
python -m benchmarks.run sft dpo ppo --before ../old

With `--before` the other side is the lit_rlhf of another checkout: is this one slower? The ratios
are printed, and the table stays.

One process a side, sides by turns, the first round of each thrown away; a ratio is that of two
rounds next to each other, and the median of the ratios is given with their smallest and largest.
Before that each side makes one step in float32 on the same rows, and the benchmark fails where
loss and gradient norm differ. What a sampler draws differs from side to side: those are not
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import write_rows
from benchmarks.table import write_table
from benchmarks.workloads import WORKLOADS, Workload
from lit_rlhf.modules.precision import choose_precision

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TOLERANCE = 1e-3
PEERS = {
    "trl": ROOT / ".venv-trl",
    "trl-ppo": ROOT / ".venv-trl-ppo",
    "vllm": ROOT / ".venv-vllm",
}
COMPARED = ("sft", "reward", "dpo")
PRECISION = choose_precision()


class Side:
    """A process that waits for rounds."""

    def __init__(self, command: list[str], log: Path, folder: Path = ROOT) -> None:
        self._log = log
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "LIT_RLHF_BENCHMARK_PRECISION": PRECISION},
            )

    def round(self) -> dict[str, float]:
        """Let it work once and return its report.

        Raises:
            RuntimeError: it has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.end()
            raise RuntimeError(f"a side ended early; see {self._log}")
        report: dict[str, float] = json.loads(line)
        return report

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdout is not None
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def start(
    workload: Workload, *, is_peer: bool, check: bool = False, before: Path | None = None
) -> Side:
    """Start one side of a workload; the peer is our own side in `before`, where that is given."""
    folder = ROOT / "runs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    program, entry = sys.executable, "benchmarks.ours"
    if is_peer and before is None:
        program = str(PEERS[workload.peer] / "bin" / "python")
        entry = "benchmarks.vllm_side" if workload.peer == "vllm" else "benchmarks.theirs"
    command = [program, "-m", entry, workload.name, *(["--check"] if check else [])]
    name = f"{workload.name}-{'peer' if is_peer else 'ours'}{'-check' if check else ''}"
    return Side(command, folder / f"{name}.log", before if is_peer and before else ROOT)


def check(workload: Workload) -> dict[str, float]:
    """Compare one float32 step on the same rows.

    Raises:
        SystemExit: loss or gradient norm differ by more than `TOLERANCE`, relatively.
    """
    both = []
    for is_peer in (False, True):
        side = start(workload, is_peer=is_peer, check=True)
        both.append(side.round())
        side.end()
    ours, theirs = both
    differences = {
        name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-12)
        for name in ("loss", "grad_norm")
    }
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"{workload.name}: not the same step: ours {ours}, theirs {theirs}")
    return differences


def measure(workload: Workload, num_rounds: int, before: Path | None = None) -> dict[str, Any]:
    """Time both sides by turns."""
    # One after the other: what DPO computes of its reference at the start is timed. The first round
    # loads, compiles, touches memory first.
    ours = start(workload, is_peer=False)
    ours.round()
    theirs = start(workload, is_peer=True, before=before)
    theirs.round()
    # Our side in another checkout works through as many units as here.
    their_units = workload.theirs if before is None else workload.ours
    rounds, products = [], []
    for number in range(num_rounds):
        products.append(product_rate())
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        first, second = order[0].round(), order[1].round()
        rounds.append((first, second) if order[0] is ours else (second, first))
    for side in (ours, theirs):
        side.end()
    per_unit = [
        (_seconds(theirs) / _units(their_units, theirs, workload))
        / (_seconds(ours) / _units(workload.ours, ours, workload))
        for ours, theirs in rounds
    ]
    rates = {
        name: [ours[name] / _seconds(ours) for ours, _ in rounds if ours.get(name)]
        for name in ("flops", "bytes")
    }
    memory = rounds[-1][0]["peak_gib"] / rounds[-1][1]["peak_gib"]
    return {
        "name": workload.name,
        "speed": statistics.median(per_unit),
        "speed_range": [min(per_unit), max(per_unit)],
        "memory": memory,
        "peak_gib": [report["peak_gib"] for report in rounds[-1]],
        "seconds": [statistics.median(_seconds(r[side]) for r in rounds) for side in (0, 1)],
        **{
            f"{name}_per_second": statistics.median(values) if values else None
            for name, values in rates.items()
        },
        "product_per_second": statistics.median(products),
        "reference_seconds": rounds[-1][0].get("reference_seconds", 0.0),
        "rounds": num_rounds,
    }


def _seconds(report: dict[str, float]) -> float:
    # What was computed before the first step counts, too.
    return report["seconds"] + report.get("reference_seconds", 0.0)


def _units(units: float, report: dict[str, float], workload: Workload) -> float:
    # Packing fills rows by tokens, so that a step has no fixed number of texts.
    return report["tokens"] if workload.phase == "sft" else units


def machine() -> dict[str, Any]:
    """Describe where this runs, with the rates of a matrix product and a copy measured now."""
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "precision": PRECISION,
        "gflops": product_rate() / 1e9,
        "copy_gb": _copy_bandwidth() / 1e9,
    }


def product_rate(size: int = 2048, at_least: float = 1.0) -> float:
    """Measure the rate of a matrix product over a second: a short burst runs at a faster clock."""
    dtype = torch.bfloat16 if PRECISION == "bf16-mixed" else torch.float32
    left, right = torch.ones(2, size, size, dtype=dtype)
    product, number, start = torch.mm(left, right), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < at_least:
        torch.mm(left, right, out=product)
        number += 1
    return 2 * size**3 * number / elapsed


def _copy_bandwidth() -> float:
    """Measure how many bytes a second a copy in memory reads and writes: the best of ten."""
    source, target = torch.ones(2, 2**26)  # 256 MiB each: no cache holds them
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def main() -> None:
    """Run what the arguments name, keep the results of the others, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=[w.name for w in WORKLOADS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout, in the peer's place")
    options = parser.parse_args()
    write_rows()
    if options.before is not None:
        _compare(options.workloads, options.rounds, options.before.resolve())
        return
    file = RESULTS / f"{PRECISION}.json"
    results = _read(file) if file.exists() else {}
    results["machine"] = machine()
    for workload in WORKLOADS:
        if workload.name not in options.workloads:
            continue
        differences = check(workload) if workload.phase in COMPARED else None
        result = measure(workload, options.rounds)
        results[workload.name] = {**result, "first_step": differences}
        file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        sys.stderr.write(f"{json.dumps(results[workload.name])}\n")
    every = [_read(one) for one in sorted(RESULTS.glob("*.json"), reverse=True)]
    write_table(every, ROOT / "docs" / "benchmarks.md")


def _compare(names: list[str], num_rounds: int, before: Path) -> None:
    for workload in WORKLOADS:
        if workload.name in names:
            found = measure(workload, num_rounds, before)
            low, high = found["speed_range"]
            sys.stdout.write(
                f"{workload.name}: {found['speed']:.2f}x ({low:.2f} to {high:.2f}) as fast as "
                f"before, in {found['memory']:.2f}x the memory\n"
            )
            sys.stdout.flush()


def _read(file: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return results


if __name__ == "__main__":
    main()
