"""`lit-rlhf evaluate` from end to end, on tiny models, files and a local endpoint."""

import csv
import errno
import json

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation import command
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.models import PolicyModel, ScalarModel, load_causal_lm, load_trunk
from lit_rlhf.models.lineage import make_lineage, write_lineage
from tests.models.examples import save_policy, write_policy, write_reward_model
from tests.support import wandb_files
from tests.support.judge_server import judge_server, shown_responses
from tests.support.phases import demonstrations, judged_groups, write_rows

KEY = "sk-very-secret-0123456789"
FAST = ["--precision", "32-true", "--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_policy(folder / "base")
    policy = write_policy(
        folder / "policy",
        PolicyModel(load_causal_lm(str(save_policy(folder / "b", seed=3)))),
        base,
    )
    data = {"train": {"source": "demos.jsonl", "sha256": "c0ffee" * 10, "rows": 9}}
    lineage = make_lineage("SFTModule", data=data, origins={"policy": str(base)}, config=None)
    write_lineage(lineage, policy)
    rewards = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scorer = ScalarModel(load_trunk(str(base)))
        rewards.append(write_reward_model(folder / f"reward{seed}", scorer, base))
    rows = [
        {"prompt": f"tell me {index}", "response": f"written by hand {index}" * (index + 1)}
        for index in range(6)
    ]
    return {
        "base": str(base),
        "policy": str(policy),
        "rewards": [str(path) for path in rewards],
        "file": write_rows(folder / "hand.jsonl", rows),
        "text": write_rows(folder / "text.jsonl", demonstrations(6)),
        "groups": write_rows(folder / "groups.jsonl", judged_groups(8)),
    }


def found(report, **wanted):
    figures = [
        figure
        for figure in report["figures"]
        if all(figure[name] == value for name, value in wanted.items())
    ]
    assert figures, wanted
    return figures


def test_policies_from_end_to_end(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", KEY)

    def shorter(content):
        a, b = shown_responses(content)
        return json.dumps({"better": "A" if len(a) < len(b) else "B" if len(b) < len(a) else "tie"})

    output = tmp_path / "out"
    with judge_server(shorter) as server:
        arguments = [
            *("evaluate", "policies"),
            *(f"base={models['base']}", f"sft={models['policy']}", f"hand={models['file']}"),
            *("--judge", f"rm={models['rewards'][0]}"),
            *("--judge", "length=function:tests.support.toy_rewards.length"),
            *("--judge", f"llm=endpoint:{server.address}#tiny"),
            *("--endpoint-key-variable", "MY_KEY", "--reference", models["base"]),
            *("--perplexity-data", models["text"], "--perplexity-rows", "4", "--samples", "1"),
            *("--output", str(output), *FAST),
        ]
        assert main(arguments) == 0
        assert len(server.requests) == 3 * 6 * 2
        assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    printed = capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    for figure in report["figures"]:
        assert figure["n"] >= 1
        if figure["metric"] == "distinct_2" and figure["subject"] != "hand":
            continue  # five random letters are one word
        assert figure["value"] is not None, figure
        assert figure["low"] is not None, figure
        assert figure["low"] <= figure["value"] <= figure["high"], figure
    # Against each other: three pairs by three judges.
    assert len(found(report, metric="win_rate")) == 9
    (by_length,) = found(report, metric="win_rate", subject="sft", against="hand", judge="length")
    assert by_length["n"] == 6
    (reference,) = found(report, metric="kl", subject="base")
    assert reference["value"] == pytest.approx(0, abs=1e-4)
    assert found(report, metric="kl", subject="sft")[0]["value"] > 0.1
    assert {figure["n"] for figure in found(report, metric="perplexity")} == {4}
    for metric in ("entropy", "truncated", "perplexity", "length"):
        assert {f["subject"] for f in found(report, metric=metric)} == {"base", "sft"}
    for metric in ("distinct_2", "self_bleu", "length_characters", "score"):
        assert {f["subject"] for f in found(report, metric=metric)} == {"base", "sft", "hand"}
    # What the models were made from.
    assert report["lineage"]["sft"]["data"]["train"]["rows"] == 9
    assert "data train: demos.jsonl, 9 rows, sha256 c0ffeec0ffee" in printed
    assert len(report["settings"]["models"]["hand"]["sha256"]) == 64
    # The same figures in every form, and the key in none.
    with (output / "figures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    values = [float(row["value"]) if row["value"] else None for row in rows]
    assert values == [figure["value"] for figure in report["figures"]]
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6
    assert samples[0]["hand"] == "written by hand 0"
    assert samples[0]["hand length"] == pytest.approx(1.7)
    assert samples[0]["sft over hand llm"] in {0, 0.5, 1}
    page = " ".join((output / "report.md").read_text().split())
    assert "| sft | win rate | hand | length |" in page
    page = (output / "report.html").read_text()
    assert "written by hand 0" in page
    assert "data:image/png;base64," in page
    assert (output / "win_rates.png").read_bytes().startswith(b"\x89PNG")
    for file in output.iterdir():
        assert KEY.encode() not in file.read_bytes()
    assert KEY not in printed


def test_options_from_a_file_and_best_of_n(models, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"policies: {{base: {models['base']}}}\n"
        f"judge: ['rm={models['rewards'][0]}', 'other={models['rewards'][1]}']\n"
        f"prompts: {models['file']}\nnum-prompts: 5\nsamples: {{base: 4}}\nmax_new_tokens: 3\n"
        f"precision: 32-true\noutput: {tmp_path / 'from-file'}\n"
    )
    output = tmp_path / "out"
    arguments = ["evaluate", "policies", "--config", str(config), "--max-new-tokens", "4"]
    assert main([*arguments, "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    assert not (tmp_path / "from-file").exists()  # the line wins
    assert (report["settings"]["max_new_tokens"], report["settings"]["samples"]) == (4, ["base=4"])
    curve = found(report, section="Best of n", judge="rm")
    assert [figure["metric"] for figure in curve] == ["best_of_1", "best_of_2", "best_of_4"]
    assert curve[0]["value"] < curve[1]["value"] < curve[2]["value"]
    assert curve[2]["against"] == "KL 0.64"
    assert found(report, section="Best of n", judge="other, chosen by rm")
    assert (output / "best_of_n.png").is_file()
    capsys.readouterr()


def test_reward_models_from_end_to_end(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "out"
    one, two = models["rewards"]
    arguments = ["evaluate", "rewards", f"seed1={one}", f"seed2={two}", "--data", models["groups"]]
    options = ["--output", str(output), "--precision", "32-true", "--wandb", "tests"]
    assert main([*arguments, *options]) == 0
    report = json.loads((output / "report.json").read_text())
    assert {f["subject"] for f in found(report, metric="accuracy")} == {"seed1", "seed2"}
    for metric in ("brier_score", "calibration_error", "same_order", "accuracy_difference"):
        assert all(f["low"] <= f["value"] <= f["high"] for f in found(report, metric=metric))
    assert report["settings"]["data"]["rows"] == 8
    assert (output / "reliability.png").is_file()
    num_pairs = found(report, metric="brier_score")[0]["n"]
    samples = (output / "samples.jsonl").read_text().splitlines()
    assert len(samples) == num_pairs
    logged = {name: value for row in wandb_files.history(output) for name, value in row.items()}
    figure = found(report, metric="accuracy", subject="seed1", section="Accuracy")[0]
    assert logged["eval/seed1/accuracy"] == pytest.approx(figure["value"])
    assert logged["eval/seed1/accuracy/low"] == pytest.approx(figure["low"])
    assert any(name.startswith("eval/reliability") for name in logged)
    table = wandb_files.table(output, "eval/samples")
    assert [row["preferred"] for row in table] == [
        json.loads(line)["preferred"] for line in samples
    ]
    assert len(wandb_files.table(output, "eval/figures")) == len(report["figures"])
    assert "seed2" in capsys.readouterr().out


def test_reward_models_against_the_judgments_of_a_store(models, tmp_path, capsys):
    store, output = tmp_path / "feedback.db", tmp_path / "out"
    assert main(["feedback", "import", models["groups"], str(store)]) == 0
    with FeedbackStore.open(str(store)) as opened, opened.snapshot("validation") as (lineage, _):
        pass
    assert lineage.number > 0
    words = ["evaluate", "rewards", models["rewards"][0], "--precision", "32-true"]
    address = f"store:{store}?split=validation"
    assert main([*words, "--data", address, "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    data = report["settings"]["data"]
    assert (data["source"], data["sha256"]) == (address, lineage.digest)
    found(report, metric="accuracy")
    assert main([*words, "--data", f"store:{tmp_path}/none.db", "--output", str(output)]) == 1
    assert "there is no such feedback store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policies", "{base}"], "no prompts: give --prompts"),
        (["policies", "a={file}", "a={file}"], "two policies are named 'a'"),
        (["policies", "{file}", "--judge", "{policy}"], "a reward model is needed"),
        (["policies", "{file}", "--judge", "function:no.where"], "cannot be imported"),
        (["policies", "{file}", "--judge", "endpoint:http://h/v1"], "name the model behind a '#'"),
        (["policies", "./nowhere", "--prompts", "{file}"], "./nowhere"),
        (["policies", "{reward}", "--prompts", "{file}"], "policy"),
        (
            ["policies", "{base}", "--prompts", "{file}", "--samples", "0"],
            "--samples 0: expected N or",
        ),
        (
            ["policies", "a={base}", "--prompts", "{file}", "--samples", "b=2"],
            "--samples b=2: expected N or NAME=N",
        ),
        (
            ["policies", "{file}", "--temperature", "-1"],
            "--temperature is -1.0; it must be at least 0",
        ),
        (["policies", "{file}", "--num-prompts", "0"], "--num-prompts is 0; it must be at least 1"),
        (["policies", "--config", "no.yaml"], "config: File does not exist"),
        (["policies", "{file}", "--num-prompt5", "3"], "did you mean 'num_prompts'?"),
        (["policies", "{file}", "--template-options", "3"], "--template-options"),
        (["rewards", "{reward}", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["rewards", "{reward}", "--data", "{file}"], "hand.jsonl:1"),
        (["rewards", "{policy}", "--data", "{groups}"], "reward"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(models, tmp_path, capsys, words, message):
    names = {**models, "reward": models["rewards"][0]}
    words = [word.format(**names) for word in words]
    output = ["--output", str(tmp_path / "out"), "--precision", "32-true"]
    assert main(["evaluate", *words, *output]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lit-rlhf: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_full_disk_does_not_cost_what_was_measured(models, tmp_path, capsys, monkeypatch):
    def write_report(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lit_rlhf.evaluation.command.write_report", write_report)
    words = ["rewards", models["rewards"][0], "--data", models["groups"]]
    output = ["--output", str(tmp_path / "out"), "--precision", "32-true"]
    assert main(["evaluate", *words, *output]) == 1
    shown = capsys.readouterr()
    assert "accuracy" in shown.out
    assert shown.err.endswith("(No space left on device); it is printed above\n")


def test_an_option_that_is_none_in_a_file(tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    config.write_text("polices: [a]\n")
    assert main(["evaluate", "policies", "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert f"{config}:1: " in error
    assert "did you mean 'policies'?" in error
    config.write_text("samples: 1\nsamples: 2\n")
    assert main(["evaluate", "policies", "--config", str(config)]) == 1
    assert "evaluate.yaml:2: the key 'samples' is already on line 1" in capsys.readouterr().err


def test_the_lineage_is_shown_by_itself(models, capsys):
    assert main(["lineage", models["policy"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SFTModule (python")
    assert lines[1] == "  data train: demos.jsonl, 9 rows, sha256 c0ffeec0ffee"
    assert lines[2].startswith(f"  from policy: {models['base']}, sha256 ")
    assert main(["lineage", models["policy"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["train"]["rows"] == 9
    assert main(["lineage", models["rewards"][0]]) == 0
    assert capsys.readouterr().out == "no lineage is recorded\n"


def test_variables_of_chat_templates_from_the_line_or_a_file(tmp_path, monkeypatch):
    given = []

    def stop(options, _folder):
        given.append(options.template_options)
        raise DataError("stopped")

    stopping = (command._COMMANDS["rewards"][0], stop)
    monkeypatch.setitem(command._COMMANDS, "rewards", stopping)
    config = tmp_path / "evaluate.yaml"
    config.write_text("template_options: {enable_thinking: false}\n")
    words = ["evaluate", "rewards", "m", "--data", "d", "--output", str(tmp_path / "out")]
    assert main([*words, "--config", str(config)]) == 1
    assert main([*words, "--template-options", '{"enable_thinking": false}']) == 1
    assert given == [{"enable_thinking": False}] * 2
