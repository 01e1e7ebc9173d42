"""What a run would need, on the command line."""

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.phase_cli import run_phase
from tests.support.phases import demonstrations, prompts, write_rows
from tests.support.tiny_models import save_tiny_policy


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(save_tiny_policy(tmp_path_factory.mktemp("policy")))


def arguments(phase, source, folder):
    rows, own = demonstrations(), []
    if phase != "sft":
        rows = prompts()
        own = ["--model.reward", "FunctionReward"]
        own += ["--model.reward.function", "tests.support.toy_rewards:length"]
    return [
        "fit",
        *("--model.policy", source, "--data.train", write_rows(folder / "rows.jsonl", rows)),
        *("--data.batch_size", "4", "--trainer.accelerator", "cpu"),
        *("--trainer.default_root_dir", str(folder / "run"), "--trainer.logger", "false"),
        *own,
    ]


@pytest.mark.parametrize(("phase", "num_steps"), [("sft", 2), ("ppo", 8), ("online-dpo", 2)])
def test_the_command_prints_a_plan_and_trains_nothing(phase, num_steps, source, tmp_path, capsys):
    cli = run_phase(phase, [*arguments(phase, source, tmp_path), "--dry-run"])
    assert cli.trainer.global_step == 0
    assert cli.plan.setup.num_steps == num_steps
    printed = capsys.readouterr().out
    assert "fits" in printed
    assert "NOT" not in printed
    assert not (tmp_path / "run").exists()


def test_where_a_run_does_not_fit_the_levers_are_named(source, tmp_path, capsys):
    run_phase("sft", [*arguments("sft", source, tmp_path), "--dry-run=0.0001"])
    printed = capsys.readouterr().out
    assert "does NOT fit" in printed
    assert "--model.activation_checkpointing true  saves" in printed


def test_a_size_that_is_no_number_and_other_commands_are_refused(source, tmp_path):
    options = arguments("sft", source, tmp_path)
    with pytest.raises(ConfigError, match="a number of GB"):
        run_phase("sft", [*options, "--dry-run=big"])
    with pytest.raises(ConfigError, match="only `fit`"):
        run_phase("sft", ["validate", *options[1:], "--dry-run"])


def test_online_dpo_decodes_all_samples_and_learns_from_two_of_each_prompt(source, tmp_path):
    options = [*arguments("online-dpo", source, tmp_path), "--dry-run"]
    two, four = (
        run_phase("online-dpo", [*options, "--model.samples_per_prompt", number]).plan.setup
        for number in ("2", "4")
    )
    assert (two.rollout.most_rows, four.rollout.most_rows) == (8, 16)
    assert two.rows == four.rows
    assert list(two.frozen) == ["reference"]
    options += ["--trainer.accumulate_grad_batches", "2"]
    accumulated = run_phase("online-dpo", options).plan.setup
    assert (accumulated.num_steps, accumulated.step_tokens) == (1, 2 * two.step_tokens)
