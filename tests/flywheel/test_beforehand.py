"""What a round needs later is looked for before the first one, and told by its setting."""

import json
import sys
from dataclasses import replace

import pytest

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.flywheel.labelers import AIJudge, SimulatedRaters
from lit_rlhf.flywheel.rounds import run_rounds
from lit_rlhf.flywheel.settings import GateConfig, PhaseConfig, RefreshConfig
from tests.flywheel.tiny_run import StandIns, tiny_settings
from tests.support.phases import write_rows


@pytest.fixture
def settings(tmp_path, monkeypatch):
    write_rows(tmp_path / "sft.jsonl", [{"prompt": "p", "response": "r"}])
    (tmp_path / "torn.jsonl").write_text('{"prompt": "p", "respo')
    (tmp_path / "score.py").write_text("def score(prompts, responses):\n    return responses\n")
    return tiny_settings(tmp_path, monkeypatch)


def refuses(settings, message, **changes):
    with pytest.raises(LitRLHFError, match=message):
        run_rounds(replace(settings, **changes), lambda line: None, StandIns(), waits=False)
    assert not list(settings.path.glob("round*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": "no/such/model"}, "^sft: no/such/model: no such model folder"),
        ({"sft": "gold"}, "^sft: gold: a policy is needed here, but this is a reward model"),
        ({"policy": PhaseConfig("ppo", ["no.yaml"])}, "policy.configs: there is no file"),
        ({"prompts": "none.jsonl"}, "^prompts: none.jsonl: there is no such file"),
        ({"held_out": "none.jsonl"}, "^held_out: none.jsonl: there is no such file"),
        ({"held_out": "torn.jsonl"}, "^held_out: torn.jsonl:1: broken JSON"),
        ({"held_out": "sft.jsonl"}, "held_out sft.jsonl: needs two prompts"),
        (
            {"held_out": "prompts.jsonl"},
            "held_out prompts.jsonl: 6 of these prompts are in prompts",
        ),
        ({"folder": "sft.jsonl/run"}, "folder sft.jsonl/run: cannot be made: Not a directory"),
        ({"refresh": RefreshConfig("no/such/base", "sft.jsonl")}, "^refresh.base: no/such/base"),
        ({"refresh": RefreshConfig("sft", "no.jsonl")}, "^refresh.data: no.jsonl: there is no"),
        ({"labeler": SimulatedRaters("no/such/gold", "ratings.jsonl")}, "^labeler.gold: no/such"),
        ({"labeler": SimulatedRaters("gold", "no.jsonl")}, "^labeler.ratings: no.jsonl: there is"),
        ({"labeler": SimulatedRaters("gold", "torn.jsonl")}, "^labeler.ratings: torn.jsonl:1: b"),
        ({"labeler": SimulatedRaters("gold", "sft.jsonl")}, "^labeler.ratings: sft.jsonl"),
        ({"labeler": AIJudge("http://127.0.0.1:1/v1", "judge")}, "slots is 3; one AI judge"),
    ],
)
def test_what_is_missing_is_told_before_anybody_judges(settings, changes, message):
    refuses(settings, message, **changes)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"judge": "reward:no/such/judge"}, "^gate.judge: no/such/judge: no such model folder"),
        ({"judge": "no/such/judge"}, "^gate.judge: no/such/judge: no such model folder"),
        ({"judge": "sft"}, "^gate.judge: sft: a reward model is needed here"),
        ({"judge": "function:no_such.judge"}, "^gate.judge: .* 'no_such.judge' cannot be imported"),
        ({"judge": "function:score.py:none"}, "^gate.judge: .* 'score.py:none' cannot be imported"),
        (
            {"final_judges": {"last": "reward:no/such/judge"}},
            "^gate.final_judges.last: no/such/judge: no such model folder",
        ),
        ({"perplexity_data": "no.jsonl"}, "^gate.perplexity_data: no.jsonl: there is no such file"),
        ({"perplexity_data": "held-out.jsonl"}, "^gate.perplexity_data: held-out.jsonl:1: "),
    ],
)
def test_what_the_gate_misses_is_told_before_anybody_judges(settings, gate, message):
    refuses(settings, message, gate=GateConfig(**{"judge": "reward:gate", **gate}))


def test_a_judge_whose_weights_are_gone_is_told(settings, tmp_path):
    (tmp_path / "gate" / "model.safetensors").unlink()
    refuses(settings, "^gate.judge: gate: this folder has no weights")


def test_functions_of_the_working_folder_are_found(settings, monkeypatch):
    """The process that judges finds them, as it is run by `python -m`."""
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    gate = GateConfig("function:score.score", {"other": "function:score.py:score"})
    run_rounds(replace(settings, gate=gate, rounds=1), lambda line: None, StandIns(), waits=False)
    assert json.loads((settings.path / "round-01" / "promotion.json").read_text())["is_promoted"]
