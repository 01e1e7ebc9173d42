"""The demonstration's page from real evaluations of tiny models."""

import json
import math
import re

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.demo.report import read_findings, write_report
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.figures import find_figure, read_figures
from lit_rlhf.models import ScalarModel, load_trunk
from tests.models.examples import save_policy, write_reward_model
from tests.support.phases import demonstrations, judged_groups, prompts, write_rows

METRICS = """\
step,train/ppo/reward,train/ppo/kl,train/ppo/kl_coef,train/ppo/first_log_ratio,val/ppo/validation,val/ppo/vader
0,,,,,-0.1,0.05
0,0.1,0.0,0.2,0.0,,
7,0.2,2.5,0.3,0.0001,,
7,,,,,0.4,0.1
14,0.4,4.5,0.25,0.0,,
"""
RUN = {
    "scale": "quick",
    "seed": 17,
    "precision": "32-true",
    "commands": ["lit-rlhf sft fit --config configs/sft.yaml", "lit-rlhf ppo fit"],
    "phases": [
        {"name": "SFT", "seconds": 60.2, "peak_memory_gib": 3.456},
        {"name": "PPO", "seconds": 299.8, "peak_memory_gib": 2.9},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands of a run leave, but for the phases'."""
    folder = tmp_path_factory.mktemp("run")
    policies = {
        name: str(save_policy(folder / name, seed=seed))
        for seed, name in enumerate(("ppo", "dpo", "sft", "base"))
    }
    rewards = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = ScalarModel(load_trunk(policies["base"]))
        path = folder / f"reward{seed}"
        rewards.append(str(write_reward_model(path, model, policies["base"])))
    groups = write_rows(folder / "groups.jsonl", judged_groups(8))
    words = [
        *("rewards", f"reward={rewards[0]}", f"--data={groups}", "--rating-gap=1"),
        *("--precision=32-true", f"--output={folder}/evaluate/rewards"),
    ]
    assert main(["evaluate", *words]) == 0
    words = [
        *("policies", *(f"{name}={source}" for name, source in policies.items())),
        *(f"--judge=reward={rewards[0]}", f"--judge=validation={rewards[1]}"),
        "--judge=vader=function:lit_rlhf.demo.vader.vader_scores",
        *(f"--reference={policies['sft']}", "--samples=sft=17", "--max-new-tokens=5"),
        f"--prompts={write_rows(folder / 'prompts.jsonl', prompts(7))}",
        f"--perplexity-data={write_rows(folder / 'texts.jsonl', demonstrations(5))}",
        *("--precision=32-true", f"--output={folder}/evaluate/policies"),
    ]
    assert main(["evaluate", *words]) == 0
    (folder / "ppo" / "metrics.csv").write_text(METRICS)
    return folder


@pytest.fixture
def change(folder):
    """Change a figure of an evaluation for the length of a test."""
    kept = {}

    def change(name, **wanted):
        file = folder / "evaluate" / name / "report.json"
        kept.setdefault(file, file.read_text())
        content = json.loads(file.read_text())
        values = wanted.pop("values")
        (found,) = [
            row for row in content["figures"] if all(row[key] == wanted[key] for key in wanted)
        ]
        found.update(values)
        file.write_text(json.dumps(content))

    yield change
    for file, text in kept.items():
        file.write_text(text)


def findings(folder, *, is_full=False):
    return {finding.name: finding for finding in read_findings(folder, is_full=is_full)}


def table_with(text, header):
    """Return the rows of the table that starts with `header`, as lists of cells."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_figures_are_those_of_the_evaluations(folder):
    policies = read_figures(folder / "evaluate" / "policies" / "report.json")
    found = findings(folder)
    rate = found["DPO: win rate against SFT by the validation reward"]
    (row,) = [
        row
        for row in policies
        if (row.subject, row.against, row.judge) == ("dpo", "sft", "validation")
        and row.metric == "win_rate"
    ]
    assert rate.figure == row
    assert (row.estimate.n, row.unit) == (7, "%")
    before, after = (found[f"SFT: held-out perplexity {when}"] for when in ("before", "after"))
    fall = 1 - after.value / before.value
    assert found["SFT: fall of the perplexity"].value == pytest.approx(fall)
    assert found["PPO: iterations that raised the KL coefficient"].value == 1
    assert found["PPO: iterations that lowered the KL coefficient"].value == 1
    log_ratio = found["PPO: largest absolute log ratio of a first minibatch"]
    assert (log_ratio.value, log_ratio.is_met) == (1e-4, True)
    with pytest.raises(DataError, match="0 figures with"):
        find_figure(policies, metric="no such metric")


@pytest.mark.parametrize(
    ("evaluation", "wanted", "name", "target"),
    [
        ("rewards", {"section": "Accuracy"}, "Reward model: held-out pairs in people's order", 76),
        ("rewards", {"against": "over 1 apart"}, "Reward model: the same, pairs more than 1", 86),
        (
            "policies",
            {"metric": "standardized_difference", "judge": "validation"},
            "PPO: gain in validation reward over SFT",
            0.8,
        ),
        (
            "policies",
            {"metric": "score_difference", "judge": "vader"},
            "PPO: gain in VADER score over SFT",
            0.15,
        ),
        (
            "policies",
            {"metric": "win_rate", "judge": "validation", "subject": "dpo", "against": "sft"},
            "DPO: win rate against SFT",
            65,
        ),
        ("policies", {"metric": "kl", "subject": "ppo"}, "PPO: KL to SFT at the end", 3.15),
    ],
)
def test_each_target_is_met_from_its_value_on(folder, change, evaluation, wanted, name, target):
    if wanted.get("metric", "").endswith("difference"):
        wanted = {**wanted, "subject": "ppo", "against": "sft"}
    unit = 100 if target > 5 else 1
    for shift, is_met in ((1e-6, True), (-1e-2, False), (math.nan, False)):
        value = None if math.isnan(shift) else target / unit * (1 + shift)
        ends = {"low": value and value * 0.9, "high": value and value * 1.1}
        change(evaluation, **wanted, values={"value": value, **ends})
        (found,) = [row for key, row in findings(folder).items() if key.startswith(name)]
        assert found.is_met is is_met
        assert found.target


def test_a_gain_that_is_not_sure_is_not_enough(folder, change):
    wanted = {"metric": "score_difference", "judge": "vader", "subject": "ppo", "against": "sft"}
    change("policies", **wanted, values={"value": 0.2, "low": -0.01, "high": 0.4})
    assert findings(folder)["PPO: gain in VADER score over SFT"].is_met is False


def test_the_full_run_asks_more_of_the_reward_model(folder, change):
    change("rewards", section="Accuracy", values={"value": 0.8})
    change("rewards", against="over 1 apart", values={"value": 0.9})
    for is_full, is_met in ((False, True), (True, False)):
        found = findings(folder, is_full=is_full)
        asked = [row.is_met for name, row in found.items() if name.startswith("Reward")]
        assert asked == [is_met, is_met]


def test_the_page_and_its_files(folder, change):
    change("policies", metric="kl", subject="ppo", values={"value": None, "low": None})
    file = folder / "evaluate" / "policies" / "samples.jsonl"
    first, *others = file.read_text().splitlines()
    hostile = {**json.loads(first), "ppo": " <b>*bold*</b> `code` | [x](y)"}
    file.write_text("\n".join([json.dumps(hostile), *others]))
    path = write_report(RUN, read_findings(folder, is_full=False), folder)
    text = path.read_text(encoding="utf-8")
    assert "6.0 minutes, 3.46 GiB at the peak, precision 32-true." in text
    for part in RUN["commands"]:
        assert part in text
    assert ["SFT", "60", "3.46"] in table_with(text, "| command")
    rows = table_with(text, "| figure")
    assert {len(row) for row in rows} == {6}
    (kl,) = [row for row in rows if row[0] == "PPO: KL to SFT at the end"]
    assert kl == [kl[0], "-", "-", "7", "within 30 % of 4.5", "**no**"]
    assert r"- ppo: &lt;b&gt;\*bold\*&lt;/b&gt; \`code\` \| \[x\](y)" in text.splitlines()
    names = re.findall(r"\]\((evaluate/[^)]+)\)", text)
    assert {"evaluate/rewards/reliability.png", "evaluate/policies/report.html"} < set(names)
    for name in names:
        assert (folder / name).is_file()
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert data["seed"] == 17
    assert [row["value"] for row in data["figures"] if row["name"] == kl[0]] == [None]
