"""Real processes, killed by SIGKILL and resumed, end bit for bit as if never stopped.

The slow proof kills every case at least `NUM_KILLS` times, at random moments and at random places
(`tests/support/kill_points.py`), and leaves its figures for `docs/robustness.md`. Its choices
follow from `SEED` and the name of the case; `LIT_RLHF_KILL_SEED` sets another.
"""

import os
import random
import zlib
from collections import Counter

import pytest

from tests.proofs.table import Claim, write_claims
from tests.support.fork_server import ForkServer, log_of
from tests.support.kill_runs import (
    CASES,
    clear,
    differences,
    job,
    largest_difference,
    outcome,
    random_kill,
    run_with_kills,
    write_inputs,
)

SEED = int(os.environ.get("LIT_RLHF_KILL_SEED", "5"))
NUM_KILLS = 20  # of each case
KILLS_OF_A_RUN = 3
# One run of each phase, killed where it hurts.
HANDFUL = {
    "sft": ["write:7", "batch:5", "rename:2"],  # batch 5: a batch into the second epoch
    "sft-steps": ["batch:6", "batch:2"],  # the last state is of the end of an epoch
    "reward": ["validation:2"],
    "dpo": ["renamed:1", "row:2"],
    "ppo-gae-learned": ["decoding:9", "sample:1"],
    "ppo-gae-function-ddp": ["step:6"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


def run_whole(server, case, inputs, folder):
    done = server.run(job(case, inputs, folder))
    assert set(done.statuses) == {0}, log_of(folder)
    return outcome(folder)


def assert_equal(found, expected):
    assert differences(found.state, expected.state) == []
    assert found.metrics == expected.metrics
    assert found.samples == expected.samples


@pytest.mark.parametrize("case", HANDFUL)
def test_a_killed_run_goes_on_as_if_never_stopped(server, inputs, tmp_path, case):
    expected = run_whole(server, case, inputs, tmp_path / "whole")
    kills = [{"kill_point": point} for point in HANDFUL[case]]
    killed_at = run_with_kills(server, case, inputs, tmp_path / "killed", kills)
    assert killed_at == [point.partition(":")[0] for point in HANDFUL[case]]
    assert_equal(outcome(tmp_path / "killed"), expected)
    # What is compared says something.
    assert len(expected.metrics.splitlines()) > 10
    assert expected.state["global_step"] >= 10
    assert bool(expected.samples) == case.startswith("ppo")


def test_from_a_torn_checkpoint_nothing_is_begun(server, inputs, tmp_path):
    killed = server.run(job("sft", inputs, tmp_path, kill_point="batch:7"))
    assert killed.statuses == [-9]
    newest = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-2000])
    done = server.run(job("sft", inputs, tmp_path, "--ckpt_path", "last"))
    assert done.statuses == [1]
    (error,) = [line for line in log_of(tmp_path).splitlines() if "lit-rlhf: error" in line]
    assert "last.ckpt: torn" in error
    assert "Traceback" not in log_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_kill_at_any_moment_changes_anything(server, inputs, tmp_path, case):
    seed = zlib.crc32(f"{SEED} {case}".encode())
    random_choice = random.Random(seed)
    expected = run_whole(server, case, inputs, tmp_path / "whole")
    places, num_held, largest = Counter(), 0, 0.0
    while places.total() < NUM_KILLS:
        folder = tmp_path / f"after-{places.total()}"
        kills = [random_kill(case, random_choice) for _ in range(KILLS_OF_A_RUN)]
        killed_at = run_with_kills(server, case, inputs, folder, kills)
        found = outcome(folder)
        largest = max(largest, largest_difference(found.state, expected.state))
        is_equal = (
            not differences(found.state, expected.state)
            and found.metrics == expected.metrics
            and found.samples == expected.samples
        )
        places.update(killed_at)
        num_held += len(killed_at) * is_equal
        clear(folder)
    by_place = ", ".join(f"{name} {number}" for name, number in sorted(places.items()))
    claim = Claim(
        f"{case}: killed by SIGKILL and resumed, a run ends as if never stopped",
        places.total(),
        num_held,
        largest,
        f"{by_place}; seed {seed}",
    )
    write_claims(f"resume-{case}", [claim])
    assert (claim.held, claim.largest_difference) == (claim.made, 0.0)
