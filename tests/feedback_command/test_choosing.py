"""`lit-rlhf feedback choose`: pairs of sampled responses become tasks."""

import json

import torch

from lit_rlhf.cli import main
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.models import ScalarModel, load_trunk
from tests.models.examples import save_policy, write_reward_model


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_chosen_pairs_become_tasks(tmp_path, capsys):
    rows = [{"prompt": f"p {i}", "responses": ["yes", "no", "maybe"]} for i in range(6)]
    file, store = write_lines(tmp_path / "samples.jsonl", rows), str(tmp_path / "feedback.db")
    assert main(["feedback", "choose", file, store, "--num-tasks", "10", "--slots", "2"]) == 0
    assert capsys.readouterr().out == "10 new tasks, 10 by RandomPairs\n"
    with FeedbackStore.open(store) as opened:
        counts = opened.counts()
        assert (counts.tasks, counts.open_slots) == (10, 20)
        for task in opened.claim("ana", count=10):
            ranks = (1, 2) if task.responses[0] > task.responses[1] else (2, 1)
            opened.submit(task.id, Judgment("judged", ranks, labeler="ana", id=f"j{task.id}"))
    torch.manual_seed(0)
    policy = save_policy(tmp_path / "policy")
    reward = tmp_path / "reward"
    write_reward_model(reward, ScalarModel(load_trunk(str(policy))), policy)
    words = ["feedback", "choose", file, store, "--num-tasks", "10", "--reward", str(reward)]
    words += ["--acquisition", '{"class_path": "DOptimal", "init_args": {"ridge": 2.0}}']
    assert main([*words, "--policy", "round 1"]) == 0
    # Eight pairs of 18 are left.
    assert capsys.readouterr().out.endswith("8 new tasks, 2 by RandomPairs, 6 by DOptimal\n")
    assert main([*words[:6], "--policy", "round 1"]) == 0
    assert capsys.readouterr().out == "0 new tasks, 8 by RandomPairs; 8 were there before\n"
    assert main([*words[:6], "--slots", "0"]) == 1
    assert "--slots 0: must be at least 1" in capsys.readouterr().err
    assert main([*words[:6], "--acquisition", "Nearest"]) == 1
    assert "is none of DOptimal, DRTS, DeltaUCB" in capsys.readouterr().err
