"""The flywheel's file and command line parse, and the phases take the words that rounds give."""

from dataclasses import replace
from pathlib import Path

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.beforehand import check_options
from lit_rlhf.flywheel.labelers import People
from lit_rlhf.flywheel.one_round import Round, Start
from lit_rlhf.flywheel.selection import DOptimal
from lit_rlhf.flywheel.settings import (
    PhaseConfig,
    RefreshConfig,
    read_acquisition,
    read_settings,
)
from tests.docs.parse_examples import phase_cli

ROOT = Path(__file__).parents[2]
FILE = ["--config", "configs/flywheel.yaml"]
DPO = PhaseConfig("dpo", ["configs/dpo.yaml", "configs/flywheel/dpo.yaml"])


def test_the_shipped_file_parses_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = read_settings([*FILE, "--rounds", "7"], "test")
    assert settings.rounds == 7
    assert isinstance(settings.labeler, People)
    assert settings.gate.judge == "reward:runs/judge/model"
    assert settings.store_address == "runs/flywheel/feedback.db"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labeler", "Peple"], "Peple"),
        (["--slots", "0"], "slots is 0; it must be at least 1"),
        (["--no_such", "1"], "no_such"),
        (["--gate", "null"], "gate is null; give it a value"),
        (["--choice.random_share", "0"], "choice.random_share"),
        (["--policy.phase", "reward", "--policy.configs", "[x.yaml]"], "policy.phase"),
    ],
)
def test_wrong_settings_are_one_error(words, message):
    with pytest.raises(ConfigError, match=message):
        read_settings([*FILE, *words], "test")


def test_null_in_a_file_is_refused_with_its_line(tmp_path):
    (tmp_path / "own.yaml").write_text("rounds: 2\ngate:\n  num_prompts:\n")
    with pytest.raises(ConfigError, match=r"own.yaml:3: gate.num_prompts is null"):
        read_settings([*FILE, "--config", str(tmp_path / "own.yaml")], "test")


def test_acquisitions_are_named_shortly_or_in_full():
    assert read_acquisition("DOptimal") == DOptimal()
    assert read_acquisition("lit_rlhf.flywheel.selection.DOptimal") == DOptimal()
    with pytest.raises(ConfigError, match="is none of DOptimal, DRTS, DeltaUCB, InfoMax"):
        read_acquisition("Nearest")


@pytest.mark.parametrize("phase", ["ppo", "dpo"])
def test_the_phases_take_the_words_of_a_round(monkeypatch, tmp_path, phase):
    monkeypatch.chdir(ROOT)
    policy = ["--policy.phase", phase]
    if phase == "dpo":
        policy += ["--policy.configs", "[configs/dpo.yaml, configs/flywheel/dpo.yaml]"]
    else:
        policy += ["--policy.configs", "[configs/ppo.yaml, configs/flywheel/ppo.yaml]"]
        policy += ["--policy.start", "continue"]
    words = [*FILE, *policy, "--folder", str(tmp_path / "run"), "--precision", "32-true"]
    settings = read_settings(words, "test")
    asked = []

    def run(title, command):
        asked.append(command)
        folder = settings.round_folder(2) / ("reward" if command[0] == "reward" else "policy")
        (folder / "model").mkdir(parents=True)

    start = Start(2, "runs/flywheel/round-01/policy/model", "round 1", "reward", None)
    own = Round(settings, start, None, lambda line: None, run)
    (own.folder / "judged").mkdir(parents=True)
    (own.folder / "judged" / "training.jsonl").touch()
    own.train_reward()
    own.train_policy()
    for name, *rest in asked:
        options = phase_cli(name).parser.parse_args(rest)["fit"].as_dict()
        assert options["data"]["validation"] is None
        assert options["seed_everything"] == 1002
        assert options["trainer"]["precision"] == "32-true"
        assert options["trainer"]["logger"]["init_args"]["save_dir"] == str(own.folder)
    if phase == "ppo":
        assert options["model"]["reference"] == "runs/sft/model"
        assert not options["model"]["judges"]


@pytest.fixture
def settings():
    return read_settings(FILE, "test")


def test_the_shipped_settings_are_read_by_their_phases(settings):
    check_options(replace(settings, refresh=RefreshConfig("base", "sft.jsonl")))
    check_options(replace(settings, policy=DPO))
    check_options(replace(settings, policy=replace(settings.policy, start="continue")))


@pytest.mark.parametrize("key", ["reward", "policy", "refresh"])
def test_a_misspelt_option_is_told_with_its_phase(settings, key):
    options = {"trainer.limit_train_batchs": 32}
    if key == "refresh":
        changes = {"refresh": RefreshConfig("base", "sft.jsonl", options=options)}
    else:
        changes = {key: replace(getattr(settings, key), options=options)}
    with pytest.raises(ConfigError, match=f"^{key}: .*limit_train_batchs.*limit_train_batches"):
        check_options(replace(settings, **changes))


def test_a_phase_that_takes_no_reward_model_is_told(settings, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "model: {reward: {class_path: FunctionReward, init_args: {function: math.prod}}}"
    )
    policy = replace(settings.policy, configs=[*settings.policy.configs, str(own)])
    with pytest.raises(ConfigError, match=r"^policy: .*model"):
        check_options(replace(settings, policy=policy))
