"""Two rounds on tiny models through the real phases, each round going on from the last policy."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flywheel.tiny_run import write_inputs

ROOT = Path(__file__).parents[2]
# The new policy's responses come first, so that its gain is 6 on each prompt: it is promoted.
JUDGE = """\
def prefers_the_first(prompts, responses):
    return [-float(place) for place in range(len(responses))]
"""


def first_kl(folder):
    """Return the KL to the reference, in nats a response, of a policy's first samples."""
    with (folder / "policy" / "metrics.csv").open() as stream:
        return float(next(csv.DictReader(stream))["train/ppo/kl"])


def digest_of_policy(folder):
    """Return the digest of the policy that a round judged as its own."""
    report = json.loads((folder / "judge" / "report.json").read_text())
    return report["settings"]["models"]["new"]["sha256"]


@pytest.mark.slow
def test_a_policy_goes_on_from_the_last_one_and_is_held_near_sft(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    words = write_inputs(
        tmp_path,
        policy={"phase": "ppo", "configs": ["ppo.yaml"], "start": "continue"},
        gate={
            "judge": "function:judge.py:prefers_the_first",
            "num_prompts": 6,
            "max_length_ratio": 50,
        },
    )
    subprocess.run(
        [sys.executable, "-m", "lit_rlhf", "flywheel", "run", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    first, second = tmp_path / "run" / "round-01", tmp_path / "run" / "round-02"
    promotions = [json.loads((one / "promotion.json").read_text()) for one in (first, second)]
    assert [one["is_promoted"] for one in promotions] == [True, True]
    assert "starts from the policy of round 1" in promotions[1]["about_policy"]
    origins = json.loads((second / "policy" / "model" / "lineage.json").read_text())["origins"]
    assert origins["policy"]["source"] == "run/round-01/policy/model"
    assert origins["policy"]["sha256"] == digest_of_policy(first)
    assert origins["reference"]["source"] == "sft"
    # The first samples are those of the policy that it starts from, and the KL is to SFT.
    assert first_kl(first) == 0
    assert first_kl(second) > 0.1
