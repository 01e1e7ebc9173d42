import sys
import time

import pytest

from benchmarks.run import Side, start
from benchmarks.table import write_table
from benchmarks.workloads import WORKLOADS

SIDE = """
import time
from benchmarks.gate import Gate
gate = Gate()
print("a library that prints")
number = 0
while gate.wait():
    number += 1
    time.sleep(0.05 * number)
    gate.report(loss=float(number))
"""


def test_a_side_works_once_a_round_and_its_waiting_does_not_count(tmp_path):
    side = Side([sys.executable, "-c", SIDE], tmp_path / "log")
    first = side.round()
    time.sleep(0.5)
    second = side.round()
    side.end()
    assert (first["loss"], second["loss"]) == (1.0, 2.0)
    assert first["seconds"] >= 0.05
    assert 0.1 <= second["seconds"] < 0.5
    assert second["peak_gib"] > 0
    assert side.process.returncode == 0
    assert (tmp_path / "log").read_text() == "a library that prints\n"


def test_a_side_that_ends_early_is_named_by_its_log(tmp_path):
    side = Side([sys.executable, "-c", "raise SystemExit('broken')"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="log"):
        side.round()
    assert "broken" in (tmp_path / "log").read_text()


def test_another_checkout_may_stand_in_the_peers_place(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "ours.py").write_text(
        """import sys; input(); print('{"name": "%s", "seconds": 1}' % sys.argv[1], flush=True)"""
    )
    side = start(WORKLOADS[0], is_peer=True, before=tmp_path)
    assert side.round() == {"name": WORKLOADS[0].name, "seconds": 1}
    side.end()


def test_the_table_says_what_was_asked_and_what_was_reached(tmp_path):
    first, second = WORKLOADS[:2]
    result = {"speed_range": [2.0, 3.1], "memory": 0.5, "peak_gib": [2.0, 4.0], "rounds": 5}
    result |= {
        "flops_per_second": 300e9,
        "bytes_per_second": 5e9,
        "product_per_second": 400e9,
        "first_step": {"loss": 2e-7, "grad_norm": 3e-6},
    }
    results = {
        "machine": {
            "cpu": "C",
            "torch": "1",
            "transformers": "2",
            "gflops": 400.0,
            "copy_gb": 20.0,
            "precision": "32-true",
        },
        first.name: {**result, "speed": first.speed_target + 0.1, "seconds": [1.0, 2.0]},
        second.name: {**result, "speed": second.speed_target - 0.1, "seconds": [1.0, 2.0]},
    }
    results[second.name] |= {"memory": 0.7, "first_step": None}
    results[second.name] |= {"flops_per_second": None, "bytes_per_second": None}
    other = {"machine": {**results["machine"], "precision": "bf16-mixed"}}
    write_table([results, other], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "5 rounds" in page
    assert page.index("## 32-true") < page.index(f"| {first.title} |") < page.index("## bf16-mixed")
    low, high = sorted(results[workload.name]["speed"] for workload in (first, second))
    assert f"| 32-true | training | TRL | {low:.2f}x to {high:.2f}x | 0.50x to 0.70x |" in page
    rows = [line for line in page[page.index("## 32-true") :].splitlines() if "|" in line]
    assert rows[2].startswith(f"| {first.title} |")
    assert rows[3].startswith(f"| {second.title} |")
    assert f"**{first.speed_target + 0.1:.2f}x**" in rows[2]
    assert f"| {second.speed_target - 0.1:.2f}x |" in rows[3]
    assert "2.00/4.00" in rows[2]
    assert "| **0.50x** |" in rows[2]
    assert "| 75%/25% | 3e-06 |" in rows[2]
    assert "| 0.70x |" in rows[3]
    assert rows[3].endswith("|  |  |")
