"""Run the checks that need a GPU, in order of value, and write what they found.

    python -m benchmarks.gpu [--minutes 12] [--device cuda]

Each check has a process of its own, so that one that breaks the device takes no other with it. What
the time does not suffice for is skipped and says so. Writes `benchmarks/results/gpu.json` and the
figures of `docs/gpu.md`. With `--device cpu` the same checks run at tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.page import Outcome, write_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"
# A check that begins with less than this left would be cut off before it says anything.
_LEAST_S = 20.0


def run_all(device: str, seconds: float) -> list[Outcome]:
    """Run the checks until the time is used up."""
    deadline = time.monotonic() + seconds
    outcomes = []
    for name, check in CHECKS.items():
        left = deadline - time.monotonic()
        if left < _LEAST_S:
            outcomes.append(Outcome(name, "skipped", "no time left", {}, 0.0))
        else:
            outcomes.append(_in_a_process(name, device, min(left, check.limit_s)))
        last = outcomes[-1]
        sys.stdout.write(f"{last.status:8} {name} ({last.seconds:.0f} s) {last.detail}\n")
        sys.stdout.flush()
    return outcomes


def run_check(name: str, device: str, folder: Path) -> Outcome:
    """Run a check in this process."""
    start = time.monotonic()
    check = CHECKS[name]
    try:
        found = check.run(device, folder)
    except Exception as error:  # whatever breaks on a device is what is to be told
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Outcome(name, "fail", text, {}, time.monotonic() - start)
    wrong = [key for key, is_right in found.holds.items() if not is_right]
    status = "skipped" if found.skipped else ("fail" if wrong else "pass")
    detail = found.skipped or ("not so: " + ", ".join(wrong) if wrong else "")
    return Outcome(name, status, detail, found.figures, time.monotonic() - start)


def _in_a_process(name: str, device: str, limit_s: float) -> Outcome:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", device]
        command += ["--only", name, "--folder", folder]
        try:
            run = subprocess.run(
                command, timeout=limit_s, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(name, "fail", f"did not end within {limit_s:.0f} s", {}, limit_s)
        if not result.is_file():
            last = (run.stderr.strip().splitlines() or ["no message"])[-1][:300]
            return Outcome(name, "fail", last, {}, time.monotonic() - start)
        return Outcome(**json.loads(result.read_text()))


def main() -> None:
    """Run all checks, or the one that `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=list(CHECKS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.only is not None:
        outcome = run_check(options.only, options.device, options.folder)
        (options.folder / "outcome.json").write_text(json.dumps(outcome._asdict()))
        return
    outcomes = run_all(options.device, 60 * options.minutes)
    write_page(outcomes, options.device, RESULTS, PAGE)
    if any(outcome.status == "fail" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
