"""What `--dry-run` expects beside what a run takes on this CPU: a Markdown table.

    python -m benchmarks.dry_run [CASE ...]

A random Llama of 29 million parameters, eight optimizer steps of each case in a process of its own,
after a run of a tiny model that loads the libraries. In two steps the largest batch may come before
AdamW has moments, and PPO has drawn its only samples by then. The peak is the kernel's (VmHWM),
with tensors outside of glibc's heap, which gives no memory back and took 7 to 30 % more here.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lit_rlhf.dry_run import Plan
from lit_rlhf.phase_cli import run_phase

_NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "131072"}
_WORDS = ("yes", "no", "maybe", "well", "good", "bad", "why", "so")
_SHAPES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8},
}


class Case(NamedTuple):
    """A phase and its options."""

    phase: str
    options: tuple[str, ...] = ()


_LORA = ("--model.lora.rank", "16")
_PPO = ("--data.batch_size", "24", "--model.sampling.max_new_tokens", "48")
CASES = {
    "sft": Case("sft"),
    "sft-bf16": Case("sft", ("--trainer.precision", "bf16-mixed")),
    "sft-checkpointing": Case("sft", ("--model.activation_checkpointing", "true")),
    "sft-lora": Case("sft", _LORA),
    "sft-micro-batches": Case(
        "sft", ("--trainer.accumulate_grad_batches", "2", "--data.batch_size", "8")
    ),
    "reward": Case("reward"),
    "dpo": Case("dpo", ("--model.reference_logprobs", "on_the_fly")),
    "ppo": Case("ppo", _PPO),
    "ppo-micro-batches": Case("ppo", (*_PPO, "--model.update.micro_batch_tokens", "600")),
    "ppo-lora": Case("ppo", (*_PPO, *_LORA)),
    "online-dpo": Case("online-dpo", _PPO),
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - here alone

    words = {word: index for index, word in enumerate(["<eos>", "<unk>", *_WORDS])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def write_inputs(folder: Path) -> None:
    """Write models, their tokenizer, and rows of texts of different lengths."""
    tokenizer = word_tokenizer()
    for name, shape in _SHAPES.items():
        config = LlamaConfig(
            vocab_size=8192,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=0,
            **shape,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(least, most)))

    rows: dict[str, list[dict[str, str]]] = {
        "sft": [{"prompt": text(9, 9), "response": text(30, 160)} for _ in range(64)],
        "reward": [
            {"prompt": text(9, 9), "chosen": text(20, 80), "rejected": text(9, 40) + " why why"}
            for _ in range(64)
        ],
        "ppo": [{"prompt": text(20, 40)} for _ in range(64)],
    }
    rows["dpo"], rows["online-dpo"] = rows["reward"], rows["ppo"]
    for name, some in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(lines)


def arguments(case: Case, folder: Path, model: str) -> list[str]:
    """Return the command line of a case."""
    source = "backbone" if case.phase == "reward" else "policy"
    options = ["fit", f"--model.{source}", str(folder / model)]
    options += ["--data.train", str(folder / f"{case.phase}.jsonl"), "--data.batch_size", "16"]
    options += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    options += ["--trainer.max_steps", "2", "--trainer.logger", "false"]
    options += ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"]
    options += ["--self_checks.enabled", "false", "--trainer.default_root_dir", str(folder / "run")]
    if case.phase in ("ppo", "online-dpo"):
        options += ["--model.reward", "FunctionReward"]
        options += ["--model.reward.function", "benchmarks.dry_run:longest"]
    return [*options, *case.options]


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Run a case in this process; return the expected and the measured peak in GB."""
    case = case._replace(options=(*case.options, "--trainer.max_steps", "8"))
    run_phase(case.phase, arguments(case, folder, "tiny"))
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    run_phase(case.phase, arguments(case, folder, "small"))
    measured = _memory("VmHWM") - before
    return {"expected": expected(case, folder).peak / 1e9, "measured": measured / 1e9}


def expected(case: Case, folder: Path) -> Plan:
    """Return the plan of a case."""
    plan = run_phase(case.phase, [*arguments(case, folder, "small"), "--dry-run"]).plan
    assert plan is not None
    return plan


def longest(prompts: list[str], responses: list[str]) -> list[float]:
    """Score responses by their length: PPO's reward."""
    return [float(len(response)) for response in responses]


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a line for each case that is named, or for all of them."""
    if sys.argv[1:2] == ["--only"]:
        figures = measure(CASES[sys.argv[2]], Path(sys.argv[3]))
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        sys.stdout.write(
            "| case | expected, GB | measured, GB | ratio |\n| --- | --- | --- | --- |\n"
        )
        for case in sys.argv[1:] or CASES:
            command = [sys.executable, "-m", "benchmarks.dry_run", "--only", case, name]
            environment = {**os.environ, **_NO_HEAP}
            run = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            (line,) = [line for line in run.stdout.splitlines() if line.startswith('{"expected')]
            figures = json.loads(line)
            plan, run_peak = figures["expected"], figures["measured"]
            line = f"| {case} | {plan:.2f} | {run_peak:.2f} | {plan / run_peak:.2f} |\n"
            sys.stdout.write(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
