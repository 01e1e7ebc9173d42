"""`lit-rlhf sample`: the best of several responses become rows that the phases read."""

import json
import math

import pytest

from lit_rlhf import best_of_n
from lit_rlhf.best_of_n import Ranked, ranked, row_of
from lit_rlhf.cli import main
from lit_rlhf.data import DPODataModule, SFTDataModule
from lit_rlhf.evaluation.options import read_reward
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.rewards import EndpointReward, ExactMatch, RewardMixture
from tests.models.examples import save_policy

FUNCTION = "function:tests.test_best_of_n:length"
CALLS = []


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(save_policy(tmp_path_factory.mktemp("policy") / "model", seed=1))


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {index}", "answer": str(index)} for index in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def length(prompts, responses, answer):
    CALLS.append(len(prompts))
    assert [prompt.split()[1] for prompt in prompts] == answer
    return [len(response) for response in responses]


def sample(policy, prompts, output, *options, reward=FUNCTION):
    words = ["sample", policy, "--prompts", prompts, "--reward", reward, "--output", str(output)]
    return main([*words, "--best-of", "4", "--max-new-tokens", "3", *options])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_and_the_worst_of_each_prompt_are_read_by_all(policy, prompts, tmp_path, capsys):
    output = tmp_path / "best.jsonl"
    assert sample(policy, prompts, output) == 0
    said = capsys.readouterr().out
    rows = rows_of(output)
    assert f"{len(rows)} rows in {output}; best of 4: " in said
    assert "KL to the policy at most 0.64" in said
    assert len(rows) > 3
    for row in rows:
        assert row["prompt"] == f"say {row['answer']}"
        assert row["response"] == row["chosen"]
        assert row["reward_chosen"] == len(row["chosen"]) > row["reward_rejected"]
    for module in (SFTDataModule, DPODataModule):
        data = module(policy, train=str(output), batch_size=1)
        data.setup("fit")
        assert len(data.prepared("train")) == len(rows)
    store = str(tmp_path / "feedback.db")
    assert main(["feedback", "import", str(output), store, "--slots", "1", "--judges"]) == 0
    with FeedbackStore.open(store) as opened:
        tasks = [set(task.responses) for task in opened.claim("ana", len(rows))]
    assert {rows[0]["chosen"], rows[0]["rejected"]} in tasks


def test_groups_have_all_responses_and_scores(policy, prompts, tmp_path):
    output = tmp_path / "groups.jsonl"
    assert sample(policy, prompts, output, "--rows", "groups") == 0
    for row in rows_of(output):
        assert row["response"] == row["responses"][0]
        assert row["ratings"] == [[len(text) for text in row["responses"]]]
    data = DPODataModule(policy, train=str(output), batch_size=1)
    data.setup("fit")
    assert len(data.prepared("train")) == len(rows_of(output))


def test_a_run_that_ends_early_goes_on_where_it_was(policy, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(best_of_n, "_ROWS_AT_ONCE", 8)  # two prompts a part
    whole, output = tmp_path / "whole.jsonl", tmp_path / "best.jsonl"
    assert sample(policy, prompts, whole) == 0
    CALLS.clear()

    class Dies(list):
        def append(self, item):
            if len(self) == 2:
                raise KeyboardInterrupt  # as Ctrl+C in the third part
            super().append(item)

    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.CALLS", Dies())
        with pytest.raises(KeyboardInterrupt):
            sample(policy, prompts, output)
    assert not output.exists()
    capsys.readouterr()
    assert sample(policy, prompts, output, "--seed", "1") == 1
    assert "was begun with another seed" in capsys.readouterr().err
    assert sample(policy, prompts, output) == 0
    assert "goes on behind 4 of 6 prompts" in capsys.readouterr().out
    assert output.read_text() == whole.read_text()
    assert sample(policy, prompts, output) == 1
    assert "is there already" in capsys.readouterr().err


def test_prompts_without_a_best_response_are_counted(policy, prompts, tmp_path, capsys):
    file = tmp_path / "reward.yaml"
    file.write_text("class_path: ExactMatch\ninit_args: {field: answer}")
    assert sample(policy, prompts, tmp_path / "best.jsonl", reward=str(file)) == 0
    assert "6 prompts left out: all responses score alike" in capsys.readouterr().out
    (tmp_path / "nan.py").write_text(
        "def f(prompts, responses):\n    return [None] * len(prompts)\n"
    )
    reward = f"function:{tmp_path}/nan.py:f"
    assert sample(policy, prompts, tmp_path / "none.jsonl", reward=reward) == 0
    assert "6 prompts left out: the reward could score no response" in capsys.readouterr().out


def test_texts_are_ranked_once_each_and_only_with_a_score():
    found = ranked(["a", "b", "a", "c"], [1.0, 3.0, 1.0, math.nan])
    assert found == Ranked(("b", "a"), (3.0, 1.0))
    assert ranked(["a"], [math.nan]) is None
    alone = Ranked(("a",), (1.0,))
    assert row_of("best", "p", alone) == {"prompt": "p", "response": "a", "reward": 1.0}
    assert row_of("pairs", "p", alone) is row_of("groups", "p", alone) is None


def test_a_reward_is_read_from_the_files_of_ppo(tmp_path):
    mixture = read_reward("configs/reward/endpoint.yaml", None)
    assert isinstance(mixture, EndpointReward)
    file = tmp_path / "own.yaml"
    parts = "{a: {class_path: ExactMatch}}"
    file.write_text(f"class_path: RewardMixture\ninit_args: {{parts: {parts}}}")
    assert read_reward(str(file), None) == RewardMixture({"a": ExactMatch()})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--best-of", "1"], "--best-of is 1; it must be at least 2"),
        (["--temperature", "0"], "at temperature 0"),
        (["--reward", "nowhere.yaml"], "nowhere.yaml"),
        (["--reward", "runs/none"], "runs/none"),
    ],
)
def test_options_that_cannot_be_are_refused(policy, prompts, tmp_path, capsys, words, message):
    assert sample(policy, prompts, tmp_path / "best.jsonl", *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("best*"))


def test_a_file_without_a_reward_is_refused(policy, prompts, tmp_path, capsys):
    file = tmp_path / "reward.yaml"
    file.write_text("class_path: ExactMatsch")
    assert sample(policy, prompts, tmp_path / "best.jsonl", "--reward", str(file)) == 1
    error = capsys.readouterr().err
    assert f"--reward {file}" in error
    assert "ExactMatsch" in error
