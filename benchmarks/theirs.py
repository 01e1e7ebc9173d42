"""The peers' side: TRL's trainers and transformers' generate, as their users would set them.

python -m benchmarks.theirs WORKLOAD [--check]

Runs in the peers' environments: no import of lit_rlhf. Weights in bf16, TRL's fastest setting on a
CPU that multiplies bf16, or float32 on one that does not; gradient checkpointing off, as it costs
time.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from benchmarks.gate import Gate
from benchmarks.workloads import (
    MODEL,
    PRECISION,
    ROWS,
    Workload,
    named,
    read_rows,
    score_length,
)


class Gated(TrainerCallback):
    """Lets the Trainer make one step a round; it logs loss and gradient norm at the step's end."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.num_tokens = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.gate.wait():
            os._exit(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            tokens = float(logs.get("num_tokens", 0.0))
            self.gate.report(
                loss=float(logs["loss"]),
                grad_norm=float(logs.get("grad_norm", float("nan"))),
                tokens=tokens - self.num_tokens,
            )
            self.num_tokens = tokens


class GatedUpdates(TrainerCallback):
    """The same for TRL's PPO, whose steps are whole iterations with a callback at their end."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.gate.report()
        self._wait()

    def _wait(self) -> None:
        if not self.gate.wait():
            os._exit(0)


def _settings(batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(ROWS / "trl"),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": 100,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "optim": "adamw_torch_fused",
    }


def _dtype(*, check: bool) -> torch.dtype:
    return torch.float32 if check or PRECISION == "32-true" else torch.bfloat16


def _lora(workload: Workload, task: str = "CAUSAL_LM") -> LoraConfig | None:
    rank = workload.settings.get("lora")
    if rank is None:
        return None
    return LoraConfig(
        r=int(str(rank)), lora_alpha=32, target_modules="all-linear", task_type=TaskType[task]
    )


def _rows(workload: Workload, batch_size: int, *, check: bool) -> list[dict[str, Any]]:
    rows = read_rows(str(workload.settings.get("rows", workload.name)))
    return rows[:batch_size] if check else rows


def _policy(*, check: bool) -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=_dtype(check=check))


def _scorer(*, check: bool = False) -> Any:
    folder = str(ROWS / "reward-model")
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=_dtype(check=check)
    )


def sft(workload: Workload, gate: Gate, *, check: bool) -> Any:
    from trl import SFTConfig, SFTTrainer

    packing = bool(workload.settings.get("packing")) and not check
    # Two rows of 512 tokens hold about as many texts as there are in one of our batches.
    batch_size = 2 if packing else 32
    options = {"packing": True, "max_length": 512} if packing else {"max_length": 512}
    args = SFTConfig(**_settings(batch_size), **options)
    return SFTTrainer(
        _policy(check=check),
        args=args,
        train_dataset=Dataset.from_list(_rows(workload, 32, check=check)),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[Gated(gate)],
    )


def reward(workload: Workload, gate: Gate, *, check: bool) -> Any:
    from trl import RewardConfig, RewardTrainer

    # The groups' pairs are 28 rows a group for a peer that knows pairs alone.
    batch_size = 28 if workload.name == "groups" else 16
    if workload.name == "groups":
        groups = _rows(workload, 4 if check else 10**6, check=True)
        rows = [pair for group in groups for pair in _pairs(group)]
        batch_size = 4 * 28 if check else 28
    else:
        rows = _rows(workload, batch_size, check=check)
    # With its default, EOS, transformers' classifier reads the score from the token before EOS.
    args = RewardConfig(**_settings(batch_size), max_length=512, pad_token="<|endoftext|>")
    return RewardTrainer(
        _scorer(check=check),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[Gated(gate)],
    )


def _pairs(group: dict[str, Any]) -> list[dict[str, str]]:
    responses, ratings = group["responses"], group["ratings"][0]
    order = sorted(range(len(responses)), key=lambda index: -ratings[index])
    return [
        {"prompt": group["prompt"], "chosen": responses[a], "rejected": responses[b]}
        for place, a in enumerate(order)
        for b in order[place + 1 :]
    ]


def dpo(workload: Workload, gate: Gate, *, check: bool) -> Any:
    from trl import DPOConfig, DPOTrainer

    batch_size = int(workload.theirs)
    args = DPOConfig(**_settings(batch_size), max_length=512, beta=0.1)
    trainer = DPOTrainer(
        _policy(check=check),
        args=args,
        train_dataset=Dataset.from_list(_rows(workload, batch_size, check=check)),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        peft_config=_lora(workload),
        callbacks=[Gated(gate)],
    )
    # The same adapters on both sides, which else are random.
    for name, parameter in trainer.model.named_parameters():
        if "lora_A" in name:
            with torch.no_grad():
                parameter.copy_(0.02 * torch.arange(parameter.numel()).cos().view_as(parameter))
    return trainer


def grpo(workload: Workload, gate: Gate, *, check: bool) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def by_length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return score_length(prompts, completions)

    args = GRPOConfig(
        **_settings(int(workload.theirs)),
        num_generations=int(str(workload.settings["samples"])),
        max_completion_length=int(str(workload.settings["new_tokens"])),
        beta=0.0,
    )
    return GRPOTrainer(
        _policy(check=check),
        reward_funcs=by_length,
        args=args,
        train_dataset=Dataset.from_list(_rows(workload, 0, check=False)),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[Gated(gate)],
    )


def ppo(workload: Workload, gate: Gate, *, check: bool) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    rows = [
        {"input_ids": tokenizer(row["prompt"]).input_ids} for row in _rows(workload, 0, check=False)
    ]
    settings = _settings(int(workload.theirs))
    settings.pop("max_steps")
    args = PPOConfig(
        **settings,
        total_episodes=100 * int(workload.theirs),
        num_ppo_epochs=int(str(workload.settings["epochs"])),
        num_mini_batches=1,
        response_length=int(str(workload.settings["new_tokens"])),
        local_rollout_forward_batch_size=int(workload.theirs),
        temperature=1.0,
        num_sample_generations=0,
        stop_token="eos",
    )
    lora = _lora(workload)
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=_policy(check=check),
        ref_model=None if lora else _policy(check=check),
        reward_model=_scorer(),
        value_model=_scorer(),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        callbacks=[GatedUpdates(gate)],
    )


def generate(workload: Workload, gate: Gate) -> None:
    """Call `model.generate` on all prompts at once, a pass a round."""
    settings = workload.settings
    tokenizer = AutoTokenizer.from_pretrained(ROWS / "generator", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        ROWS / "generator", dtype=_dtype(check=False)
    ).eval()
    rows = read_rows(str(settings.get("rows", workload.name)))[: int(str(settings["prompts"]))]
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    while gate.wait():
        output = model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=int(str(settings["new_tokens"])),
            min_new_tokens=int(str(settings["min_tokens"])),
            eos_token_id=2,
            pad_token_id=0,
        )
        sampled = output[:, batch.input_ids.shape[1] :]
        ends = (sampled == 2).int().argmax(1) + 1
        lengths = torch.where((sampled == 2).any(1), ends, sampled.shape[1])
        gate.report(tokens=float(lengths.sum()))


def main() -> None:
    """Run the side that the arguments name."""
    gate = Gate()
    workload, check = named(sys.argv[1]), "--check" in sys.argv
    torch.manual_seed(0)
    if workload.phase == "generate":
        generate(workload, gate)
    else:
        entries = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "grpo": grpo}
        entries[workload.phase](workload, gate, check=check).train()


if __name__ == "__main__":
    main()
