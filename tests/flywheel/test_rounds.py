"""The loop: what each round starts from, what a second run skips, and people who are waited for."""

import json
import uuid

import pytest

from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel.collecting import WaitingError
from lit_rlhf.flywheel.one_round import read_tasks
from lit_rlhf.flywheel.report import write_report
from lit_rlhf.flywheel.rounds import read_status, run_rounds
from lit_rlhf.flywheel.steps import read_rows
from tests.flywheel.tiny_run import StandIns, tiny_settings
from tests.support.phases import write_rows

PEOPLE = {"class_path": "People", "init_args": {"poll_s": 0.01}}


def go(settings, run, *, waits=True):
    said = []
    run_rounds(settings, said.append, run, waits=waits)
    return said


def option(words, name):
    (found,) = [word.split("=", 1)[1] for word in words if word.startswith(f"--{name}=")]
    return found


def command(run, number, phase):
    (found,) = [
        w for title, w in run.commands if title.startswith(f"round {number},") and w[0] == phase
    ]
    return found


def tree(folder):
    """Return the content of every file that a run leaves, but for the log of seconds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.jsonl" and "feedback.db" not in path.name
    }


def test_a_better_policy_is_promoted_and_the_next_round_samples_from_it(tmp_path, monkeypatch):
    run = StandIns(gain=0.1)
    settings = tiny_settings(tmp_path, monkeypatch)
    said = go(settings, run)
    assert [words[0] for _, words in run.commands] == ["reward", "ppo", "evaluate"] * 2
    assert not list(tmp_path.rglob("checkpoints"))  # of phases that are finished
    assert "round 2 of 2, from the policy of round 1" in said
    assert "promoted=run/round-01/policy/model" in command(run, 2, "evaluate")
    # Policy and reward model start anew, the reward model from the judgments of both rounds.
    assert option(command(run, 2, "ppo"), "model.policy") == "sft"
    assert option(command(run, 2, "reward"), "model.backbone") == "sft"
    assert (
        option(command(run, 2, "ppo"), "model.reward.init_args.model")
        == "run/round-02/reward/model"
    )
    first, both = (
        read_tasks(settings.round_folder(number) / "judged" / "full.jsonl") for number in (1, 2)
    )
    assert [task.metadata["round"] for task in both] == [1] * 8 + [2] * 8
    assert both[:8] == first
    origins = {task.models for task in both[8:]}
    assert origins == {("round 1", "round 1")}


def test_a_policy_that_is_not_better_is_left_behind_and_its_judgments_stay(tmp_path, monkeypatch):
    run = StandIns(gain=-0.01)
    settings = tiny_settings(tmp_path, monkeypatch)
    said = go(settings, run)
    assert "round 2 of 2, from the policy of SFT" in said
    assert any("not promoted" in line and "lower bound is -0.010" in line for line in said)
    assert not any(word.startswith("promoted=") for word in command(run, 2, "evaluate"))
    assert len(read_tasks(settings.round_folder(2) / "judged" / "full.jsonl")) == 16


def test_the_record_says_in_words_which_data_and_start_each_model_had(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch)
    go(settings, StandIns())
    record = json.loads((settings.round_folder(2) / "promotion.json").read_text())
    assert record["about_samples"] == "The pairs are responses of the policy of round 1."
    assert "anew from the SFT backbone" in record["about_reward"]
    assert "all judgments of rounds 1 to 2" in record["about_reward"]
    assert "starts from the SFT policy" in record["about_policy"]


def test_going_on_keeps_the_reference_at_sft(tmp_path, monkeypatch):
    policy = {"phase": "ppo", "configs": ["ppo.yaml"], "start": "continue"}
    run = StandIns()
    go(tiny_settings(tmp_path, monkeypatch, policy=policy), run)
    words = command(run, 2, "ppo")
    assert option(words, "model.policy") == "run/round-01/policy/model"
    assert option(words, "model.reference") == "sft"


def test_the_best_responses_of_all_rounds_join_sft(tmp_path, monkeypatch):
    demonstrations = [{"prompt": "say it", "response": " yes"}]
    refresh = {"base": "sft", "data": "sft.jsonl", "num_best": 2, "configs": ["reward.yaml"]}
    settings = tiny_settings(tmp_path, monkeypatch, refresh=refresh)
    write_rows(tmp_path / "sft.jsonl", demonstrations)
    run = StandIns()
    go(settings, run)
    assert [words[0] for _, words in run.commands] == ["reward", "sft", "ppo", "evaluate"] * 2
    words = command(run, 2, "ppo")
    assert option(words, "model.policy") == "run/round-02/refresh/model"
    assert option(words, "model.reference") == "sft"  # which stays
    rows = list(read_rows(settings.round_folder(2) / "demonstrations.jsonl"))
    assert rows[:1] == demonstrations
    assert len(rows) == 1 + 2 * 2
    sampled = {
        (row["prompt"], text)
        for number in (1, 2)
        for row in read_rows(settings.round_folder(number) / "samples.jsonl")
        for text in row["responses"]
    }
    assert {(row["prompt"], row["response"]) for row in rows[1:]} <= sampled
    assert len({row["prompt"] for row in rows[1:]}) == 4
    record = json.loads((settings.round_folder(2) / "promotion.json").read_text())
    assert "fine-tuned again with the best responses of rounds 1 to 2" in record["about_policy"]
    states = [row.step for row in read_status(settings)]
    assert states.count("refresh") == 2


def test_dpo_learns_from_the_judgments_of_all_rounds(tmp_path, monkeypatch):
    run = StandIns()
    go(tiny_settings(tmp_path, monkeypatch, policy={"phase": "dpo", "configs": ["ppo.yaml"]}), run)
    words = command(run, 2, "dpo")
    assert option(words, "data.train") == "run/round-02/judged/training.jsonl"
    assert not any("reward" in word for word in words)


def test_a_second_run_does_nothing_and_one_round_more_goes_on(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)
    go(settings, StandIns())
    before = tree(tmp_path / "run")
    again = StandIns()
    go(settings, again)
    assert again.commands == []
    assert tree(tmp_path / "run") == before
    go(tiny_settings(tmp_path, monkeypatch, rounds=2), again)
    assert len(again.commands) == 3
    assert before.items() <= tree(tmp_path / "run").items()


@pytest.mark.parametrize("broken", ["reward", "ppo", "evaluate"])
def test_a_run_that_broke_off_ends_as_one_that_did_not(tmp_path, monkeypatch, broken):
    (tmp_path / "whole").mkdir()
    whole = tiny_settings(tmp_path / "whole", monkeypatch)
    go(whole, StandIns())
    expected = tree(tmp_path / "whole" / "run")
    settings = tiny_settings(tmp_path / "broken", monkeypatch)

    class Breaks(StandIns):
        def __call__(self, title, words):
            if words[0] == broken and title.startswith("round 2"):
                raise TrainingError("killed")
            super().__call__(title, words)

    with pytest.raises(TrainingError, match="killed"):
        go(settings, Breaks())
    states = {(row.round, row.step): row.state for row in read_status(settings)}
    assert states[1, "promote"] == "finished"
    step = {"reward": "reward", "ppo": "policy", "evaluate": "judge"}[broken]
    assert states[2, step] == "under way"
    go(settings, StandIns())
    assert tree(tmp_path / "broken" / "run") == expected


def test_other_settings_than_those_of_a_finished_step_are_refused(tmp_path, monkeypatch):
    go(tiny_settings(tmp_path, monkeypatch, rounds=1), StandIns())
    with pytest.raises(ConfigError, match=r"3-collect.json: step '3-collect' .* \(slots\)"):
        go(tiny_settings(tmp_path, monkeypatch, rounds=1, slots=2), StandIns())


def test_a_run_with_people_ends_and_goes_on_when_they_have_judged(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, labeler=PEOPLE, rounds=1, slots=2)
    run = StandIns()
    with pytest.raises(WaitingError, match="16 judgments of 8 tasks are missing"):
        go(settings, run, waits=False)
    assert run.commands == []
    with FeedbackStore.open("run/feedback.db") as store:
        for labeler in ("ana", "ben"):
            for task in store.claim(labeler, count=20):
                said = Judgment(
                    "judged", (1, 2), labeler=labeler, id=str(uuid.uuid4()), duration_s=6
                )
                store.submit(task.id, said)
    go(settings, run, waits=False)
    assert len(run.commands) == 3
    report = write_report(settings).read_text()
    assert "| 2 " in report  # minutes: 16 judgments of 6 seconds
    assert "by ana: judged (1, 2)" in report


def test_a_waiting_run_goes_on_by_itself(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, labeler=PEOPLE, rounds=1, slots=1)
    said = []

    def say(line):
        said.append(line)
        if line.startswith("8 judgments of 8 tasks"):  # a labeler comes
            with FeedbackStore.open("run/feedback.db") as store:
                for task in store.claim("ana", count=20):
                    own = Judgment("judged", (2, 1), labeler="ana", id=str(uuid.uuid4()))
                    store.submit(task.id, own)

    run_rounds(settings, say, StandIns(), waits=True)
    assert said[-1].startswith("round 1: promoted")


def test_the_report_has_every_round(tmp_path, monkeypatch):
    gate = {
        "judge": "reward:gate",
        "num_prompts": 6,
        "max_length_ratio": 50,
        "final_judges": {"last": "reward:gold"},
    }
    settings = tiny_settings(tmp_path, monkeypatch, gate=gate)
    go(settings, StandIns())
    text = write_report(settings).read_text()
    assert text.startswith("# 2 rounds of the flywheel\n\nPromoted: round 1, 2. ")
    assert "No gate ever asked last." in text
    assert "gain by last" in text
    assert (tmp_path / "run" / "rounds.png").stat().st_size > 1000
    rounds = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["round"] for row in rounds] == [1, 2]
    # The reward model of round 1 was measured on what it never saw.
    assert rounds[0]["measures"]["on_random_share"] is None
    assert 0 <= rounds[1]["measures"]["on_random_share"]["value"] <= 1
    # Raters err, but not as often as they are right.
    assert 0.5 < rounds[0]["measures"]["raters_right"]["value"] < 1
    assert rounds[1]["all_judgments"] == rounds[0]["judgments"] + rounds[1]["judgments"]


def test_before_the_first_round_there_is_no_status(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no round has begun"):
        list(read_status(tiny_settings(tmp_path, monkeypatch)))
