"""What is measured: the same rows, lengths and optimizer steps on both sides.

Standard library alone, as it also runs in the peers' environments.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("LIT_RLHF_HOME") or "~/.cache/lit_rlhf").expanduser()
MODEL = str(CACHE / "SmolLM2-135M-Instruct")
ROWS = CACHE / "benchmarks"
REWARD_ADAPTER = ROWS / "runs" / "reward" / "model"
TRUNK_WEIGHTS, VOCABULARY_WEIGHTS = 106.2e6, 28.3e6  # SmolLM2-135M's
# What both sides compute in, set by the runner: "bf16-mixed", or "32-true" on a CPU that
# multiplies float32 faster.
PRECISION = os.environ.get("LIT_RLHF_BENCHMARK_PRECISION", "bf16-mixed")


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        name: of the row, and of its file of data.
        phase: "sft", "reward", "dpo", "ppo", "grpo" or "generate".
        title: what is in the table.
        peer: environment and entry of the other side.
        speed_target: asked of the throughput, ours over the peer's.
        memory_target: asked of the peak memory, ours over the peer's; None: nothing.
        ours: units (rows, pairs, tokens) that one of our rounds works through.
        theirs: units of the peer's round; ratios are per unit.
        settings: what else the sides must agree on.
    """

    name: str
    phase: str
    title: str
    peer: str
    speed_target: float
    memory_target: float | None
    ours: float
    theirs: float
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def micro_batches(self) -> int:
        """Into how many our side cuts a batch: few rows' activations are then held at once."""
        return int(str(self.settings.get("micro_batches", 1)))


def read_rows(name: str) -> list[dict[str, str]]:
    """Read the rows that `benchmarks.rows` has written."""
    text = (ROWS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def score_length(prompts: list[str], responses: list[str]) -> list[float]:
    """Score responses by their length: the GRPO workload's reward, which costs nothing."""
    return [len(response) / 100 for response in responses]


def _cut(float32: int, bf16: int) -> dict[str, object]:
    """Choose the micro-batches: the weights' casts to bf16 are made for each."""
    return {"micro_batches": float32 if PRECISION == "32-true" else bf16}


_PPO = {"prompt_tokens": 16, "new_tokens": 32, "epochs": 4}
WORKLOADS = (
    Workload("sft", "sft", "SFT, 32 movie texts, full fine-tuning", "trl", 2.5, 0.6, 32, 32),
    Workload(
        "sft-packed",
        "sft",
        "SFT, 32 movie texts, against packing",
        "trl",
        1.0,
        0.6,
        32,
        32,
        {"rows": "sft", "packing": True},
    ),
    Workload(
        "pairs",
        "reward",
        "reward model, 16 pairs",
        "trl",
        1.8,
        0.6,
        16,
        16,
        _cut(float32=4, bf16=1),
    ),
    Workload(
        "groups",
        "reward",
        "reward model, 4 groups of 8 judged responses",
        "trl",
        8.0,
        0.6,
        4 * 28,
        28,
    ),
    Workload(
        "dpo", "dpo", "DPO, 16 pairs, short prompt", "trl", 3.5, 0.6, 16, 16, {"rows": "pairs"}
    ),
    Workload("dpo-long", "dpo", "DPO, 4 pairs, prompt of some 320 tokens", "trl", 5.0, 0.4, 4, 4),
    Workload(
        "dpo-lora",
        "dpo",
        "DPO, 16 pairs, LoRA rank 16",
        "trl",
        3.5,
        0.5,
        16,
        16,
        {"rows": "pairs", "lora": 16},
    ),
    Workload(
        "ppo",
        "ppo",
        "PPO iteration, 32 prompts",
        "trl-ppo",
        3.0,
        0.6,
        32,
        32,
        {**_PPO, **_cut(float32=2, bf16=1)},
    ),
    Workload(
        "ppo-lora",
        "ppo",
        "PPO iteration, 32 prompts, LoRA rank 16",
        "trl-ppo",
        4.0,
        0.4,
        32,
        32,
        {**_PPO, "rows": "ppo", "lora": 16, **_cut(float32=4, bf16=2)},
    ),
    Workload(
        "grpo",
        "grpo",
        "GRPO iteration, 4 prompts with 8 samples",
        "trl",
        2.5,
        0.6,
        32,
        32,
        {**_PPO, "rows": "ppo", "samples": 8, **_cut(float32=4, bf16=1)},
    ),
    Workload(
        "generate",
        "generate",
        "generation, 64 prompts, 32 tokens each",
        "trl",
        3.0,
        1.0,
        64 * 32,
        64 * 32,
        {"new_tokens": 32, "min_tokens": 32, "prompts": 64},
    ),
    Workload(
        "generate-vllm",
        "generate",
        "generation, 64 prompts, 32 tokens each, against vLLM",
        "vllm",
        2.0,
        None,
        64 * 32,
        64 * 32,
        {"rows": "generate", "new_tokens": 32, "min_tokens": 32, "prompts": 64},
    ),
    Workload(
        "generate-eos",
        "generate",
        "generation, 128 prompts, 4 to 128 tokens by EOS",
        "trl",
        5.0,
        1.0,
        128,
        128,
        {"rows": "generate", "new_tokens": 128, "min_tokens": 4, "prompts": 128},
    ),
)


def named(name: str) -> Workload:
    """Return the workload of that name."""
    return next(workload for workload in WORKLOADS if workload.name == name)
