import random

import numpy as np
import peft  # noqa: F401 - first of all: under jaxtyping's import hook it compiles anew, and warns
import pytest

from benchmarks.overoptimization.__main__ import prove, write_data
from benchmarks.overoptimization.page import lost_look
from benchmarks.overoptimization.pieces import Proof
from benchmarks.overoptimization.scale import FULL, SMOKE
from lit_rlhf.demo.ratings import RatedText
from tests.support.tiny_models import save_tiny_policy

WORDS = ["good", "bad", "film", "plot", "dull", "fine", "very", "not", "so", "a", "the", "it"]


def texts(num_texts=700):
    draw = random.Random(0)
    rated = []
    for number in range(num_texts):
        text = f"{number} " + " ".join(draw.choices(WORDS, k=9))
        mood = text.count("good") + text.count("fine") - text.count("bad") - text.count("dull")
        ratings = tuple(max(-4, min(4, mood + draw.randint(-1, 1))) for _ in range(15))
        rated.append(RatedText(text, ratings))
    return rated


@pytest.mark.slow
def test_the_whole_proof_on_a_tiny_model_and_on_again_after_a_kill(tmp_path):
    write_data(tmp_path / "data", texts())
    base = save_tiny_policy(tmp_path / "base")
    proof = Proof(SMOKE, tmp_path / "run", base, tmp_path / "data")
    page = tmp_path / "page.md"
    prove(proof, ("best_of_n", "ppo", "alarms"), page)
    written = page.read_text()
    for heading in ("## Best of n", "## PPO", "## The alarm", "64 texts", "minimum of 2"):
        assert heading in written
    assert (tmp_path / "overoptimization-ppo.png").exists()
    pieces = (tmp_path / "run" / "minutes.jsonl").read_text()
    # Once more: what is there is not made again.
    prove(proof, ("best_of_n", "ppo", "alarms"), page)
    assert page.read_text() == written
    assert (tmp_path / "run" / "minutes.jsonl").read_text() == pieces
    missing = proof.folder / "best_of_n" / "gold.npy"
    before = np.load(missing)
    missing.unlink()
    proof.best_of_n()
    assert np.array_equal(np.load(missing), before)


@pytest.mark.parametrize(
    ("gold", "look"),
    [
        ([0, 1, 2, 1.9, 1.7, 2], 4),
        ([0, 1, 2, 3], None),
        ([0, -1, -2], None),  # nothing was gained that could be lost
        ([5, 6, 5.95, 7, 6.7], 4),
    ],
)
def test_when_gold_has_lost_a_tenth_of_its_gain(gold, look):
    assert lost_look(np.array(gold, float)) == look


def test_the_estimate_covers_every_piece():
    minutes = FULL.minutes()
    assert minutes.keys() == {"models", "best_of_n", "ppo", "alarms"}
    assert FULL.minutes(12.0)["models"] > minutes["models"]
