"""The rounds of the demonstration: who judges what, and what is skipped."""

from pathlib import Path

import pytest

from lit_rlhf.demo import flywheel
from lit_rlhf.demo.flywheel import demo_settings, prepare_models
from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.labelers import SimulatedRaters

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("size", "num_tasks"), [("smoke", 20), ("quick", 120)])
def test_raters_gate_and_final_judge_are_not_the_same(size, num_tasks, tmp_path):
    settings = demo_settings(size, tmp_path, tmp_path / "data", seed=3)
    assert settings.rounds == 2
    assert settings.choice.num_tasks == num_tasks
    assert isinstance(settings.labeler, SimulatedRaters)
    assert settings.labeler.gold == str(tmp_path / "reward" / "model")
    assert settings.gate.judge == f"reward:{tmp_path / 'judge' / 'model'}"
    assert list(settings.gate.final_judges) == ["vader"]
    assert settings.seed == 3


def test_the_models_of_a_demonstration_are_used(tmp_path, monkeypatch):
    models, seen = tmp_path / "demo", []
    monkeypatch.setattr(flywheel, "run_rounds", lambda settings, *_, **__: seen.append(settings))
    monkeypatch.setattr(flywheel, "write_report", lambda settings: settings.path / "report.md")
    monkeypatch.setattr(flywheel, "run_command", None)  # nothing is trained

    def run():
        flywheel.run_flywheel("smoke", tmp_path / "run", tmp_path / "data", 1, models)

    for name in ("sft", "reward"):
        (models / name / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="judge"):
        run()
    (models / "judge" / "model").mkdir(parents=True)
    run()
    (settings,) = seen
    assert settings.sft == str(models / "sft" / "model")
    assert settings.labeler.gold == str(models / "reward" / "model")
    assert settings.gate.judge == f"reward:{models / 'judge' / 'model'}"
    assert settings.path == tmp_path / "run"


def test_models_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    asked = []

    def run(title, words):
        asked.append(words)
        name = ("sft", "reward", "judge")[len(asked) - 1]
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(title)

    monkeypatch.setattr(flywheel, "run_command", run)
    for _ in range(2):
        prepare_models("smoke", tmp_path, 1, "32-true")
    assert [words[:2] for words in asked] == [["sft", "fit"], ["reward", "fit"], ["reward", "fit"]]
    assert "--data.limit_train=96" in asked[0]
    assert f"--model.backbone={tmp_path / 'sft' / 'model'}" in asked[1]
    *_, last = [word for word in asked[2] if word.startswith("--data.train=")]
    assert last.endswith("/data/judge/train.jsonl")
