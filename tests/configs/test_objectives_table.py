"""The rows of the table of objectives: each file of an objective, each a sound command."""

import pytest

from benchmarks.objectives import BUDGETS, Bench, entries, figures_of, labelled, table
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.shipped import configs_folder
from tests.docs.parse_examples import phase_cli


def test_each_file_of_an_objective_has_a_row():
    files = {
        f"{folder}/{file.name}"
        for folder in ("loss", "advantage", "policy_loss")
        for file in (configs_folder() / folder).glob("*.yaml")
    }
    assert {entry.fragment for entry in entries().values()} == files | {""}
    assert {"sft", "dpo", "gae", "online-dpo"} <= entries().keys()


@pytest.mark.parametrize("name", [name for name in entries() if name != "sft"])
def test_a_row_trains_by_a_sound_command_of_the_same_budget(tmp_path, name):
    bench, entry = Bench(BUDGETS["quick"], tmp_path, seed=3), entries()[name]
    phase, *words = bench.training(entry)
    options = phase_cli(phase).parser.parse_args(words)["fit"].as_dict()
    assert options["model"]["policy"] == bench.start
    assert options["trainer"]["logger"]["init_args"]["name"] == name
    if phase == "dpo":
        # KTO counts single texts, 32 of a group; the others groups, one a batch.
        texts = options["data"]["limit_train"] * (1 if name == "kto" else 32)
        assert texts == 32 * bench.budget.groups
        return
    advantage = options["model"].get("advantage", {"class_path": "", "init_args": {}})
    per_prompt = {"RLOO": 4, "GRPO": 8, "ReinforcePlusPlusBaseline": 8}.get(
        advantage["class_path"].rpartition(".")[2], 2 if phase == "online-dpo" else 1
    )
    assert options["data"]["batch_size"] * per_prompt == 64
    assert options["trainer"]["limit_train_batches"] == bench.budget.batches


def test_the_better_half_of_a_group_is_good():
    group = {"prompt": "p", "responses": ["a", "b", "c"], "ratings": [[1, 3, None], [2, 5, 4]]}
    rows = labelled(group)
    assert [(row["response"], row["label"]) for row in rows] == [
        ("a", False), ("b", True), ("c", True),
    ]  # fmt: skip


def test_the_table_has_the_best_first():
    def figures(score):
        estimate = Estimate(score, score - 1, score + 1, 9)
        rows = [Figure("Scores", "policy", "score", estimate, judge="validation")]
        rows += [
            Figure("Scores", "policy", "score", estimate, judge=one) for one in ("reward", "vader")
        ]
        return rows + [Figure("Responses", "policy", one, estimate) for one in ("kl", "length")]

    rows = [{"name": str(score), "seconds": 3.0, **figures_of(figures(score))} for score in (1, 2)]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| 2 | 2.00 (1.00 to 3.00) |")
    assert lines[3].endswith("| 3 |")
