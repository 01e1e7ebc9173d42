"""Every phase and every fragment that a CPU can run trains two batches and validates one."""

import json
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_rlhf.callbacks import KLControl, WandbAutoLogger
from lit_rlhf.cli import PHASES
from lit_rlhf.data.subset import Subset
from lit_rlhf.demo.vader import VaderReward
from lit_rlhf.models.lineage import read_lineage
from lit_rlhf.objectives import (
    BCO,
    DPO,
    GAE,
    GRPO,
    RLOO,
    AdaptiveKL,
    ChosenNLL,
    FixedKL,
    WeightedSum,
)
from lit_rlhf.rewards import EnsembleReward, FunctionReward, LearnedReward, MathsEqual
from tests.models.examples import plain_model
from tests.support import wandb_files
from tests.support.phases import write_rows
from tests.support.score_server import score_server

HERE = Path(__file__).parent
STEPS = {
    "sft": 2,
    "reward": 2,
    "ppo": 8,
    "dpo": 2,
    "online-dpo": 2,
}  # PPO: four epochs of one minibatch

REWARDS_OF_THE_DOCS = """
def short_and_finished(prompts, responses):
    return [float(response.endswith(".")) - len(response) / 200 for response in responses]
"""


def check_run(cli, phase):
    """Two batches were trained, one was validated, and all that was measured is a number."""
    epoch = cli.trainer.fit_loop.epoch_loop
    assert epoch.batch_progress.total.completed == 2
    assert epoch.val_loop.batch_progress.total.completed == 1
    assert cli.trainer.global_step == STEPS[phase]
    metrics = cli.trainer.callback_metrics
    assert {name.partition("/")[0] for name in metrics} == {"train", "val"}
    assert [name for name, value in metrics.items() if not torch.isfinite(value)] == []


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_predicts_into_a_file(workplace, first_runs, phase):
    ending = {"reward": ', "response": "b"', "ppo": ', "note": 1'}.get(phase, "")
    rows = "".join(f'{{"prompt": "{word}"{ending}}}\n' for word in ("a", "the film", "c"))
    (workplace.folder / "asked.jsonl").write_text(rows)
    options = ["--data.predict=asked.jsonl", "--prediction.path=answers.jsonl"]
    if phase == "reward":
        last = "runs/reward/checkpoints/last.ckpt"
        options.append(f"--ckpt_path={last}")
    else:
        options += ["--prediction.sampling.max_new_tokens=3"]
    file = HERE.parents[1] / "configs" / f"{phase.replace('-', '_')}.yaml"
    assert workplace.command(phase, "predict", f"--config={file}", *options) == 0
    lines = (workplace.folder / "answers.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in found] == ["a", "the film", "c"]
    kinds = {type(row["score" if phase == "reward" else "response"]) for row in found}
    assert kinds == {float if phase == "reward" else str}


def callback(cli, kind):
    (found,) = (one for one in cli.trainer.callbacks if isinstance(one, kind))
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_runs_as_shipped(workplace, first_runs, phase):
    check_run(first_runs[phase] if phase in first_runs else workplace.fit(phase), phase)
    run = workplace.folder / "runs" / phase.replace("-", "_")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    auto_class = AutoModelForSequenceClassification if phase == "reward" else AutoModelForCausalLM
    assert plain_model(run / "model", auto_class).config.architectures == [
        "LlamaForSequenceClassification" if phase == "reward" else "LlamaForCausalLM"
    ]
    assert (run / "metrics.csv").is_file()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["seed_everything"] == 1
    lineage = read_lineage(str(run / "model"))
    assert lineage["config"]["model"] == settings["model"]
    assert lineage["data"]["train"]["rows"] == 6 if phase in ("reward", "dpo") else 8
    if phase in (
        "ppo",
        "online-dpo",
    ):  # the chain: PPO, its policy and its reward, and the model under both
        origins = lineage["origins"]
        assert origins.keys() == {"policy", "reward", "validation"}
        sft, reward = (origins[role]["lineage"] for role in ("policy", "reward"))
        assert (sft["phase"], reward["phase"]) == ("SFTModule", "RewardModule")
        assert sft["origins"]["policy"] == reward["origins"]["backbone"]
        assert len(sft["origins"]["policy"]["sha256"]) == 64


def test_ppo_by_an_ensemble_of_members_with_other_raters_and_texts(workplace):
    for member in (1, 2, 3):
        subset = [f"--data.subset.{name}=0.5" for name in ("raters", "rows")]
        subset += [f"--data.subset.seed={member}"]
        name = f"--trainer.logger.init_args.name=reward-{member}"
        trained = workplace.fit("reward", options=[*subset, name])
        assert trained.datamodule.subset == Subset(0.5, 0.5, member)
    cli = workplace.fit(
        "ppo", "reward/ensemble.yaml", options=["--trainer.num_sanity_val_steps=-1"]
    )
    check_run(cli, "ppo")
    assert isinstance(cli.model.reward, EnsembleReward)
    assert cli.model.reward.combine == "minimum"
    folder = workplace.folder / "runs" / "ppo"
    samples = (folder / "samples.jsonl").read_text().splitlines()
    assert json.loads(samples[-1])["reward_disagreement"] > 0
    watched = (folder / "overoptimization" / "values.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in watched] == [0, STEPS["ppo"]]
    assert read_lineage(str(folder / "best"))["step"] == STEPS["ppo"]


@pytest.mark.parametrize("phase", ["sft", "reward", "dpo"])
def test_adapters_under_another_name(workplace, phase):
    options = ["--trainer.logger.init_args.name=lora"]
    cli = workplace.fit(phase, "lora/lora.yaml", options=options)
    check_run(cli, phase)
    assert (cli.model.lora.rank, cli.model.lora.alpha) == (16, 32)
    assert any("lora" in name for name, _ in cli.model.named_parameters())
    assert (workplace.folder / "runs" / "lora" / "metrics.csv").is_file()
    assert phase != "dpo" or cli.model.loss == DPO()


# Whether the CPU that the tests run on is fast in bf16 is none of their business.
@pytest.mark.filterwarnings("ignore:trainer.precision bf16-mixed")
@pytest.mark.parametrize("phase", ["reward", "ppo"])
def test_a_phase_in_less_memory(workplace, phase):
    fragments = ["memory/checkpointing.yaml", "memory/bf16.yaml"]
    run_name = f"--trainer.logger.init_args.name=less-{phase}"
    options = ["--trainer.precision=bf16-mixed", run_name]
    cli = workplace.fit(phase, *fragments, options=options)
    check_run(cli, phase)
    trained = cli.model.reward_model if phase == "reward" else cli.model.policy
    layers = [value for name, value in trained.named_parameters() if "layers" in name]
    assert {value.dtype for value in layers} == {torch.bfloat16}
    states = cli.trainer.optimizers[0].state
    assert {state["exp_avg"].dtype for state in states.values()} == {torch.bfloat16}


def test_ppo_with_a_critic_of_its_own_a_function_and_a_fixed_coefficient(
    workplace, tmp_path, monkeypatch
):
    (tmp_path / "my_rewards.py").write_text(REWARDS_OF_THE_DOCS)
    monkeypatch.syspath_prepend(tmp_path)
    fragments = ["critic/separate.yaml", "reward/function.yaml"]
    fixed = ["--kl.target=null", "--kl.coefficient=0.05"]
    cli = workplace.fit("ppo", *fragments, options=fixed)
    check_run(cli, "ppo")
    assert cli.model.advantage == GAE(gamma=1.0, gae_lambda=0.95)
    assert cli.model.critic is not None
    assert cli.model.reward == FunctionReward("my_rewards.short_and_finished")
    assert callback(cli, KLControl).controller == FixedKL(0.05)
    assert cli.model.kl_coef == 0.05


def test_ppo_without_a_critic_by_adapters_and_rules(workplace):
    fragments = ["advantage/rloo.yaml", "reward/vader.yaml"]
    cli = workplace.fit("ppo", *fragments, "lora/lora.yaml")
    check_run(cli, "ppo")
    assert cli.model.advantage == RLOO(k=4)
    assert cli.model.critic is None
    assert cli.model.reward == VaderReward()
    assert cli.model.reference is None  # the policy itself, its adapters switched off
    samples = (workplace.folder / "runs" / "ppo" / "samples.jsonl").read_text().splitlines()
    assert {"step", "prompt", "response", "validation"} <= json.loads(samples[-1]).keys()


def test_ppo_with_group_relative_advantages(workplace):
    fragments = ["advantage/grpo.yaml", "reward/function.yaml"]
    cli = workplace.fit("ppo", *fragments, options=["--monitor.action=roll_back"])
    check_run(cli, "ppo")
    assert cli.model.advantage == GRPO(k=8, scale="group")
    assert not cli.model.whiten_advantages
    assert cli.model.policy.value_head is None


def test_ppo_by_a_mixture_of_rules_and_a_reward_model(workplace):
    cli = workplace.fit("ppo", "reward/mixture.yaml")
    check_run(cli, "ppo")
    assert cli.model.reward.weights == {"format": 0.5, "length": 0.5}
    logged = (workplace.folder / "runs" / "ppo" / "metrics.csv").read_text().splitlines()[0]
    for name in ("preference", "format", "length"):
        assert f"train/ppo/reward_{name}," in logged


def test_ppo_by_a_server(workplace):
    with score_server(lambda number, content: list(map(len, content["responses"]))) as server:
        address = f"--model.reward.init_args.address={server.address}"
        cli = workplace.fit("ppo", "reward/endpoint.yaml", options=[address])
    check_run(cli, "ppo")
    assert server.requests


def test_ppo_by_answers(workplace, tmp_path):
    rows = [{"prompt": f"{number} + 1 = ", "answer": str(number + 1)} for number in range(8)]
    options = [f"--data.train={write_rows(tmp_path / 'sums.jsonl', rows)}"]
    options.append("--trainer.limit_val_batches=0")  # whose prompts have no answers
    cli = workplace.fit("ppo", "reward/maths.yaml", options=options)
    assert cli.model.reward == MathsEqual()
    assert "train/ppo/unscored" in cli.trainer.callback_metrics


def test_ppo_with_the_published_controller_in_weights_and_biases(workplace):
    fragments = ["logger/wandb.yaml"]
    published = ["--kl.target=6", "--kl.coefficient=0.15", "--kl.horizon=10000"]
    wandb.teardown()  # read the environment anew
    try:
        cli = workplace.fit("ppo", *fragments, options=published)
        wandb.finish()
    finally:
        wandb.teardown()
    check_run(cli, "ppo")
    assert isinstance(cli.trainer.logger, WandbAutoLogger)
    assert isinstance(cli.model.reward, LearnedReward)
    assert callback(cli, KLControl).controller == AdaptiveKL(0.15, 6.0, 10000.0)
    logged = {name for row in wandb_files.history(workplace.folder / "runs") for name in row}
    assert {"train/ppo/kl_coef", "val/ppo/reward"} <= logged


def test_a_sum_of_losses_runs(workplace):
    cli = workplace.fit("dpo", "loss/mpo.yaml")
    check_run(cli, "dpo")
    assert cli.model.loss == WeightedSum((DPO(), BCO(), ChosenNLL()), (0.8, 0.2, 1.0))
    assert (cli.datamodule.prepared("train")[0].pairs[0].probability) == 1.0


@pytest.mark.parametrize(
    ("phase", "fragment"),
    [
        ("reward", "flywheel/reward.yaml"),
        ("ppo", "flywheel/ppo.yaml"),
        ("dpo", "flywheel/dpo.yaml"),
    ],
)
def test_the_phases_of_a_round_run(workplace, phase, fragment):
    few = ("--data.batch_size=2",)
    check_run(workplace.fit(phase, fragment, options=few), phase)


# ------------------------------------------------------------------------------------------------


def test_every_fragment_runs_above_or_needs_more_than_a_cpu():
    elsewhere = {"trainer/ddp.yaml", "trainer/fsdp2.yaml", "debug/fast.yaml"}
    elsewhere.add("generator/vllm.yaml")  # by tests/rollout/vllm/test_real_vllm.py
    configs = HERE.parents[1] / "configs"
    fragments = {str(path.relative_to(configs)) for path in configs.glob("*/*.yaml")}
    # These take steps in tests/modules/test_dpo.py, test_reward.py and test_ppo_objectives.py; the
    # richest run above.
    of_objectives = ("loss/", "reward_loss/", "advantage/", "policy_loss/", "kl_penalty/")
    elsewhere |= {name for name in fragments if name.startswith(of_objectives)}
    source = Path(__file__).read_text()
    assert sorted(name for name in fragments - elsewhere if f'"{name}"' not in source) == []
