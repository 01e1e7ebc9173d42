"""The arms spend the same judgments and steps, and the page says what came out."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.flywheel.arms import ARMS, NUM_ROUNDS, SCALES, Proof, take_first_round
from benchmarks.flywheel.choice import accuracy_of, learn, planted_pool
from benchmarks.flywheel.page import mean_with_interval, write_page
from lit_rlhf.flywheel.rounds import run_rounds
from lit_rlhf.flywheel.selection import DOptimal, RandomPairs
from tests.flywheel.tiny_run import StandIns, tiny_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proof(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return Proof(SCALES["small"], tmp_path / "proof", tmp_path / "data")


def test_every_arm_has_the_same_judgments_and_policy_steps(proof):
    spent = set()
    for arm in ARMS:
        settings = proof.settings(arm, 2)
        steps = settings.policy.options["trainer.limit_train_batches"]
        spent.add((
            settings.rounds * settings.choice.num_tasks,
            settings.rounds * settings.samples.num_prompts,
            settings.rounds * steps,
            settings.policy.options["data.batch_size"],
        ))  # fmt: skip
        assert settings.labeler.seed == settings.seed == 2
    assert len(spent) == 1


def test_an_arm_differs_from_the_rounds_in_what_it_says(proof):
    rounds, random, sft = (proof.settings(arm, 1) for arm in ("rounds", "random", "sft"))
    assert rounds.choice.acquisition != random.choice.acquisition == RandomPairs()
    assert rounds.samples.policy == random.samples.policy == "newest"
    assert sft.samples.policy == "sft"
    assert proof.settings("one", 1).rounds == 1


def test_a_run_goes_on_from_the_first_round_of_another_as_from_its_own(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch)  # two rounds by InfoMax
    choice = replace(settings.choice, acquisition=RandomPairs())
    first = replace(settings, folder="first", rounds=1, choice=choice)
    run_rounds(first, str, StandIns(), waits=False)
    other = replace(settings, folder="other", samples=replace(settings.samples, policy="sft"))
    take_first_round(first, other)
    run = StandIns()
    run_rounds(other, str, run, waits=False)
    assert {title.partition(",")[0] for title, _ in run.commands} == {"round 2"}
    whole = replace(other, folder="whole")
    run_rounds(whole, str, StandIns(), waits=False)
    for name in ("tasks.jsonl", "samples.jsonl", "measures.json"):
        own, alone = (one.round_folder(2) / name for one in (other, whole))
        assert own.read_bytes() == alone.read_bytes()


def test_arms_differ_from_their_first_round_in_what_begins_with_the_second(proof):
    first = proof.first_settings(2)
    assert first.rounds == 1
    for arm in ("rounds", "random", "sft"):
        own = proof.settings(arm, 2)
        later = {"folder": own.folder, "rounds": own.rounds, "choice": own.choice}
        assert replace(first, samples=own.samples, **later) == own


def test_what_is_left_is_counted(proof):
    done = proof.settings("rounds", 1).round_folder(1)
    done.mkdir(parents=True)
    (done / "promotion.json").touch()
    first, second = proof.estimate(["rounds", "one"], [1])
    assert first.startswith(f"rounds, seed 1: 1 of {NUM_ROUNDS} rounds done")
    assert second.startswith("one, seed 1: 0 of 1 rounds done")


def test_the_interval_is_students():
    assert mean_with_interval([1.0, 2.0, 3.0]) == f"2.000 ± {4.303 / math.sqrt(3):.3f}"
    assert mean_with_interval([0.5]) == "0.500"


def test_true_ties_are_not_measured():
    truth = np.array([0.0, 1.0, 1.0])
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    assert accuracy_of(np.array([0.0, 5.0, -5.0]), truth, pairs) == 0.5


@pytest.mark.slow
def test_where_many_are_alike_a_rule_that_sees_it_learns_more():
    found = {
        type(rule).__name__: np.mean(
            [learn(rule, planted_pool(seed), seed)[-1]["accuracy"] for seed in (11, 12, 13)]
        )
        for rule in (RandomPairs(), DOptimal())
    }
    assert found["DOptimal"] > found["RandomPairs"]


def test_the_page_has_what_was_expected_and_what_came_out(tmp_path):
    def row(gold, right):
        return {
            "gains": {"gold": {"value": gold}, "vader": {"value": 0.1}},
            "promotion": {"kl": 4.5},
            "measures": {"on_own_samples": {"value": right}},
            "all_judgments": 100,
            "seconds": {"1-sample": 60.0},
        }

    for seed in (1, 2):
        for arm, gold in (("rounds", 0.5), ("one", 0.3)):
            rounds = [row(0.1, 0.6), row(gold + seed / 10, 0.7)]
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps({"rounds": rounds}))
    choice = [
        {"case": "planted", "rule": rule, "seed": seed, "judgments": n, "accuracy": n / 100,
         "seconds": 10.0 * n}
        for rule in ("RandomPairs", "DOptimal") for seed in (1, 2) for n in (40, 80)
    ]  # fmt: skip
    (tmp_path / "choice.json").write_text(json.dumps(choice))
    text = write_page(tmp_path, tmp_path).read_text()
    assert text.index("## Expected, before anything was run") < text.index("## Rounds")
    assert "0.650 ± 0.635" in text
    assert "| `one` | 0.200 ± 0.000" in text
    assert (tmp_path / "flywheel-proof.png").stat().st_size > 1000
    assert (tmp_path / "flywheel-choice.png").stat().st_size > 1000
