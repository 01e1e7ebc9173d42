import json
import random
import shutil

import numpy as np
import peft  # noqa: F401 - first of all: under jaxtyping's import hook it compiles anew, and warns
import pytest
import torch

from benchmarks.overoptimization.__main__ import PIECES, prove, write_data
from benchmarks.overoptimization.page import PENALTY, lost_look, read_history, write_page
from benchmarks.overoptimization.pieces import Proof, cut_layers
from benchmarks.overoptimization.scale import FULL, SMOKE
from lit_rlhf.demo.ratings import RatedText
from lit_rlhf.models import load_causal_lm
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
    proof = Proof(SMOKE, tmp_path / "run", base, tmp_path / "data", tmp_path / "results")
    page = tmp_path / "page.md"
    prove(proof, PIECES, page)
    written = page.read_text()
    for heading in ("## Best of n", "## PPO", "## The alarm", "64 texts", "minimum of 2"):
        assert heading in written
    for picture in ("best-of-n", "ppo", "alarm"):
        assert (tmp_path / f"overoptimization-{picture}.png").exists()
    minutes = proof.minutes_file.read_text()
    # Once more, the models lost: what was measured is not measured again, and trains nothing.
    shutil.rmtree(tmp_path / "run")
    prove(proof, PIECES, page)
    assert page.read_text() == written
    assert proof.minutes_file.read_text() == minutes
    # The scores lost: the models are trained anew, and say the same.
    scores = proof.best_of_n_file.read_text()
    proof.best_of_n_file.unlink()
    proof.best_of_n()
    assert proof.best_of_n_file.read_text() == scores


def test_the_page_says_what_was_measured_and_no_more(tmp_path):
    proof = Proof(SMOKE, *(tmp_path / name for name in ("run", "base", "data", "results")))
    proof.minutes_file.write_text('{"piece": "sft", "minutes": 1.5}\n')
    kinds = proof.scale.alarms()
    rows, draw = 40, np.random.default_rng(1)
    # Gold gains 1 and loses half of it at the look after the alarm could have come.
    gold = {"diverging": [0, 1, 1, 0.5], "healthy": [0, 1, 1, 1]}
    for kind, (run,) in kinds.items():
        lines = []
        for look, mean in enumerate(gold[kind]):
            falls = kind == "diverging" and look >= 2
            values = {
                "step": look,
                "prompt_ids": list(range(rows)),
                "kl": [float(look)] * rows,
                "gold": [float(mean)] * rows,
                "judge-1": list(draw.normal(-look if falls else 0, 0.5, rows)),
                "reward": list(draw.normal(look, 0.5, rows)),
            }
            lines.append(json.dumps(values) + "\n")
        proof.values_file(run).write_text("".join(lines))
    (proof.results / "notes.md").write_text("What a person wrote.\n")
    write_page(proof, tmp_path / "page.md")
    page = tmp_path.joinpath("page.md").read_text()
    assert "What a person wrote." in page
    assert "Of 1 runs that should diverge, 1 reach" in page
    assert "before it in 1 of these. It is silent in 1 of 1 runs" in page
    assert "## Best of n" not in page


def test_the_validation_reward_is_the_lower_bound_of_the_judges(tmp_path):
    row = {"step": 0, "prompt_ids": [0, 1], "response": ["a", "b"], "gold": [0.0, 1.0]}
    judges = {"judge-1": [1.0, 2.0], "judge-2": [3.0, 2.0]}
    (tmp_path / "run.jsonl").write_text(json.dumps({**row, **judges}) + "\n")
    history = read_history(tmp_path / "run.jsonl")
    # Means 2 and 2, deviations 1 and 0.
    np.testing.assert_allclose(history.values("validation"), [[2.0 - PENALTY, 2.0]])


def test_a_small_trunk_is_the_first_layers_of_the_policy(tmp_path):
    base = save_tiny_policy(tmp_path / "base")
    cut_layers(base, 1, tmp_path / "trunk")
    whole, trunk = (load_causal_lm(str(folder)) for folder in (base, tmp_path / "trunk"))
    tokens = torch.tensor([[5, 9, 3, 17]])
    with torch.no_grad():
        first_layer = whole(tokens, output_hidden_states=True).hidden_states[1]
        expected = whole.lm_head(whole.model.norm(first_layer))
        logits = trunk(tokens).logits
    assert len(whole.model.layers) == 2
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, whole(tokens).logits)


@pytest.mark.parametrize(
    ("gold", "look"),
    [
        ([0, 1, 2, 1.9, 1.7, 2], 4),
        ([0, 1, 2, 3], None),
        ([0, 0, -1], 2),  # nothing was gained: the loss is that from the start
        ([5, 6, 5.95, 7, 6.7], 4),
    ],
)
def test_when_gold_has_lost_a_tenth_of_its_gain(gold, look):
    prompts = np.random.default_rng(1).normal(size=40)  # what is a prompt's own does not count
    assert lost_look(np.array(gold, float)[:, None] + prompts) == look


def test_a_fall_within_the_noise_of_the_prompts_is_none():
    noise = np.random.default_rng(1).normal(0, 2, size=(4, 40))
    noise -= noise.mean(axis=1, keepdims=True)
    means = np.array([0.0, 1.0, 2.0, 1.7])
    assert lost_look(means[:, None] + noise / 100) == 3
    assert lost_look(means[:, None] + noise) is None


def test_a_gain_within_the_noise_of_the_prompts_is_none():
    noise = np.random.default_rng(1).normal(0, 2, size=40)
    noise -= noise.mean()
    gold = np.array([noise, np.full(40, 0.1), np.full(40, 0.02) + noise / 100])
    assert lost_look(gold) is None
    gold[0] /= 100
    assert lost_look(gold) == 2


def test_the_estimate_covers_every_piece():
    minutes = FULL.minutes()
    assert minutes.keys() == {"models", "best_of_n", "ppo", "alarms"}
    assert FULL.minutes(12.0)["models"] > minutes["models"]
