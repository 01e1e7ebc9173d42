"""The commands of the demonstration parse, and say what they should."""

from pathlib import Path

import pytest

from lit_rlhf.child_command import Usage
from lit_rlhf.demo import loop
from lit_rlhf.demo.report import KL_TARGET
from tests.docs.parse_examples import phase_cli

SIZES = {"smoke": (256, 3), "quick": (512, 18), "full": (2048, 32)}  # texts of SFT, iterations


@pytest.mark.parametrize("scale", loop.SCALES)
def test_every_phase_parses(monkeypatch, tmp_path, scale):
    asked = []
    monkeypatch.setattr(loop, "run_command", lambda _, words: asked.append(words) or Usage(1, 1))
    monkeypatch.setattr(loop, "choose_precision", lambda: "32-true")
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "ca che"))
    monkeypatch.chdir(Path(__file__).parents[2])
    loop.run_loop(loop.SCALES[scale], tmp_path / "run", seed=5)
    parsed = {}
    for phase, *words in asked[:5]:
        options = phase_cli(phase).parser.parse_args(words)["fit"].as_dict()
        name = options["trainer"]["logger"]["init_args"]["name"]
        parsed[name] = options
        assert options["seed_everything"] == options["data"]["seed"] == 5
        assert options["trainer"]["precision"] == "32-true"
        # The judge has its own texts, and the cache is where the environment says.
        task = "reward" if phase == "dpo" else name
        assert options["data"]["train"] == str(tmp_path / "ca che" / "data" / task / "train.jsonl")
    assert set(parsed) == {"sft", "reward", "ppo", "dpo", "judge"}
    limits = parsed["sft"]["data"]["limit_train"], parsed["ppo"]["trainer"]["limit_train_batches"]
    assert limits == SIZES[scale]
    assert f"'target': {KL_TARGET}," in str(parsed["ppo"])
    assert [words[:2] for words in asked[5:]] == [["evaluate", "rewards"], ["evaluate", "policies"]]
