"""The loop: what each round starts from, what a second run skips, and people who are waited for."""

import json
import math
import uuid
from dataclasses import replace

import pytest

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigError, DataError, TrainingError
from lit_rlhf.feedback.early_stop import EarlyStop
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel import models
from lit_rlhf.flywheel.collecting import WaitingError
from lit_rlhf.flywheel.one_round import read_tasks
from lit_rlhf.flywheel.report import read_round, write_report
from lit_rlhf.flywheel.rounds import read_status, run_rounds
from lit_rlhf.flywheel.settings import PhaseConfig
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


def test_responses_of_sft_are_said_to_be_its_own(tmp_path, monkeypatch):
    samples = {"policy": "sft", "num_prompts": 6, "num_responses": 3, "max_new_tokens": 6}
    settings = tiny_settings(tmp_path, monkeypatch, samples=samples)
    go(settings, StandIns(gain=0.1))  # round 1 is promoted
    assert {task.models for task in own(settings, 2)} == {("SFT", "SFT")}


def test_a_changed_file_of_settings_is_another_input(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)
    go(settings, StandIns())
    with (tmp_path / "ppo.yaml").open("a") as stream:
        stream.write("seed_everything: 3\n")
    with pytest.raises(ConfigError, match=r"step '7-policy' .* \(configs\)"):
        go(settings, StandIns())


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
    with (tmp_path / "sft.jsonl").open("a") as stream:
        stream.write("\n")  # as an editor may leave it
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
    # All at random, as raters are measured there alone.
    settings = replace(settings, choice=replace(settings.choice, random_share=1))
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


def test_a_torn_precision_is_named(tmp_path, monkeypatch):
    settings = replace(tiny_settings(tmp_path, monkeypatch), precision="auto")
    settings.path.mkdir()
    for content in ('"bf16-', '"16-true"', "[]"):
        (settings.path / "precision.json").write_text(content)
        with pytest.raises(DataError, match=r"precision.json: is torn.*delete it"):
            go(settings, StandIns())


def own(settings, number):
    return read_tasks(settings.round_folder(number) / "judged" / "own.jsonl")


def test_runs_that_share_a_store_measure_their_own_tasks(tmp_path, monkeypatch):
    one = tiny_settings(tmp_path, monkeypatch, store="shared.db", rounds=1)
    go(one, StandIns())
    other = replace(one, folder="other", seed=2)
    go(other, StandIns())
    found = read_round(other, 1)
    assert found.tasks == len(own(other, 1)) == 8
    assert found.all_judgments > found.judgments  # the other run's are learned from, too


def test_judgments_of_another_kind_in_the_store_change_no_figure(tmp_path, monkeypatch):
    ana = Judgment("judged", (1, 2), labeler="ana")
    rated = Judgment("judged", ratings=(3.0,), labeler="ana")
    with FeedbackStore.open(str(tmp_path / "shared.db")) as store:
        store.add_tasks(
            [
                JudgedTask("p", ("a", "b"), (ana,), None, {"round": 1}),
                JudgedTask("q", ("a", "b"), (ana,), None, {}, "harmless"),
                JudgedTask("r", ("a",), (rated,), None, {}),
            ]
        )
    settings = tiny_settings(tmp_path, monkeypatch, store="shared.db", rounds=1)
    go(settings, StandIns())
    assert read_round(settings, 1).tasks == 8
    rows = read_rows(settings.round_folder(1) / "judged" / "training.jsonl")
    prompts = {row["prompt"] for row in rows}
    assert "p" in prompts  # it answers the same question
    assert "q" not in prompts


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_rounds_on_postgresql_are_those_on_sqlite(tmp_path, monkeypatch, store_url):
    go(tiny_settings(tmp_path / "sqlite", monkeypatch), StandIns())
    settings = tiny_settings(tmp_path / "postgres", monkeypatch, store=store_url)
    go(settings, StandIns())
    assert tree(tmp_path / "postgres" / "run") == tree(tmp_path / "sqlite" / "run")
    assert not (tmp_path / "postgres" / "run" / "feedback.db").exists()
    with FeedbackStore.open(store_url, create=False) as store:
        assert store.counts().current == read_round(settings, 2).all_judgments
        assert store.counts().open_slots == 0


def judge_all(labelers, say, db="run/feedback.db"):
    with FeedbackStore.open(db) as store:
        for name in labelers:
            for task in store.claim(name, count=20):
                store.submit(task.id, say(name, task))


def test_a_round_in_which_people_see_no_difference_ends_and_is_reported(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, labeler=PEOPLE, slots=1)
    for _ in range(2):
        with pytest.raises(WaitingError):
            go(settings, StandIns(), waits=False)
        judge_all(["ana"], lambda name, task: Judgment("tie", labeler=name, id=f"{name}{task.id}"))
    go(settings, StandIns(), waits=False)
    assert "| 2     | -" in write_report(settings).read_text()  # nobody preferred anything


def test_the_report_counts_and_follows_what_compares(tmp_path, monkeypatch):
    """A skip goes to somebody else, and trains nothing."""
    settings = tiny_settings(tmp_path, monkeypatch, labeler=PEOPLE, slots=3, rounds=1)
    with pytest.raises(WaitingError):
        go(settings, StandIns(), waits=False)
    judge_all(["ana"], lambda name, task: Judgment("skip", labeler=name, id=f"ana{task.id}"))

    def same(name, task):
        return Judgment("judged", (1, 2), labeler=name, id=f"{name}{task.id}")

    judge_all(["ben", "cleo"], same)
    with pytest.raises(WaitingError, match="2 judgments of 2 tasks"):  # of the random share
        go(replace(settings, early_stop=EarlyStop(accuracy=0.9)), StandIns(), waits=False)
    judge_all(["dan"], lambda n, t: same(n, t)._replace(ranks=(2, 1)))
    settings = replace(settings, early_stop=EarlyStop(accuracy=0.9))
    go(settings, StandIns(), waits=False)
    found = read_round(settings, 1)
    assert found.share_decided == 6 / 8
    assert found.agreement == pytest.approx(1 / 3)  # of the two tasks of the random share
    assert "by ben: judged (1, 2)" in write_report(settings).read_text()


def test_a_gain_without_an_interval_is_said(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)
    said = go(settings, StandIns(gain=math.nan))
    assert said[-1].startswith("round 1: not promoted, gain - (-), KL 1.50: the gain's lower")
    write_report(settings)


def test_a_policy_that_collapsed_is_left_behind_and_ends_no_run(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)
    real = models._sample

    def sample(policy, prompts, config, how):
        if "round-01/policy" in policy:
            return [("same",) * config.num_responses for _ in prompts]
        return real(policy, prompts, config, how)

    monkeypatch.setattr(models, "_sample", sample)
    go(settings, StandIns(gain=-1))
    assert read_round(settings, 1).measures["on_own_samples"] is None
    assert write_report(settings).exists()


def test_two_runs_of_one_folder_do_not_mix(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)

    class Second(StandIns):
        def __call__(self, title, words):
            with pytest.raises(ConfigError, match="another `lit-rlhf flywheel run` is at work"):
                go(settings, StandIns())
            super().__call__(title, words)

    run = Second()
    go(settings, run)
    assert len(run.commands) == 3
    go(settings, StandIns())  # the lock is free again


def test_a_store_without_the_earlier_judgments_is_refused(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, monkeypatch, rounds=1)
    go(settings, StandIns())
    (tmp_path / "run" / "feedback.db").unlink()
    more = replace(settings, rounds=2)
    with pytest.raises(DataError, match=r"lacks 8 judged tasks .* feedback import run/round-01"):
        go(more, StandIns())
    judged = str(settings.round_folder(1) / "judged" / "full.jsonl")
    assert main(["feedback", "import", judged, "run/feedback.db"]) == 0
    go(more, StandIns())
    assert read_round(more, 2).all_judgments == 48


def test_settings_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    policy = PhaseConfig("ppo", ["~/ppo.yaml"])
    run = StandIns()
    go(replace(tiny_settings(tmp_path, monkeypatch, rounds=1), policy=policy), run)
    assert "--config=~/ppo.yaml" in command(run, 1, "ppo")
