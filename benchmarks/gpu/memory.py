"""What PPO of real models needs on one GPU and on eight: a Markdown table, by the dry run.

    python -m benchmarks.gpu.memory

64 prompts of 512 tokens a process, responses of up to 1,024, micro-batches of 12,288 tokens, a
reward model and a judge of the policy's size, bf16-mixed. Each line has the parts of the time that
takes most: while the policy is updated, while it samples, or while reward and judge are asked.
LoRA: 24 GB, micro-batches of 3,072 tokens, 8,192 tokens of prompts at once, no reward model.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from lit_rlhf.dry_run import Setup, plan_of
from lit_rlhf.dry_run.hollow import Kind, Rows
from lit_rlhf.dry_run.plan import LIBRARIES, Rollout
from lit_rlhf.models import LoRAConfig

_LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256}
MODELS: dict[str, PretrainedConfig] = {
    "Qwen2.5-1.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-3B": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        tie_word_embeddings=True,
        **_LLAMA,
    ),
    "Llama-3-8B": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        **_LLAMA,
    ),
}


def setups(source: str, vocabulary: int) -> dict[str, Setup]:
    """Return the runs of a model, by their names."""
    policy = Kind(source, "policy", True, precision="bf16-mixed", on_cpu=False)
    fixed = policy._replace(trains=False)
    judges = {name: fixed._replace(role="reward") for name in ("reward model", "judge")}
    full = Setup(
        phase="ppo",
        trained={"policy": policy},
        frozen={"reference": fixed, **judges},
        states="float32",
        rows=Rows(1, 12_288, 8192, False),
        num_micro_batches=8,
        scored=Rows(20, 1537, 20, False),
        judges=("judge",),
        rollout=Rollout(64, 1, 512, 1536, vocabulary, 32_768),
        device="cuda",
        memory=80_000_000_000,
    )
    checkpointed = policy._replace(checkpointing=True)
    bf16 = replace(full, trained={"policy": checkpointed._replace(weights="bf16")}, states="bf16")
    lora = {"policy": checkpointed._replace(lora=LoRAConfig())}
    small = Rows(1, 3072, 2048, False)
    alone = replace(
        full,
        trained=lora,
        frozen={},
        scored=None,
        rows=small,
        rollout=Rollout(64, 1, 512, 1536, vocabulary, 8192),
        memory=24_000_000_000,
    )
    sharded = replace(full, trained={"policy": checkpointed}, strategy="fsdp2", num_processes=8)
    return {
        "LoRA, checkpointing, no reward model": alone,
        "full": full,
        "checkpointing": replace(full, trained={"policy": checkpointed}),
        "checkpointing, `memory/bf16`": bf16,
        "8 GPUs, `fsdp2`, checkpointing": sharded,
        "8 GPUs, the same with `memory/bf16`": replace(bf16, strategy="fsdp2", num_processes=8),
    }


# Column -> the parts of a plan that it adds up.
_PARTS = {
    "policy": ("weights of the policy", "cast weights"),
    "reference": ("weights of the reference",),
    "reward, judge": ("weights of the reward model", "weights of a judge"),
    "moments": ("moments",),
    "gradients": ("gradients",),
    "gathered": ("gathered layers", "gathered weights"),
    "cache": ("cache",),
    "activations": ("activations",),
}


def main() -> None:
    """Print a line for each model and run."""
    sys.stdout.write(
        f"| model | run | GB | fits | at its most | {' | '.join(_PARTS)} | sum |\n"
        + "| --- " * (len(_PARTS) + 6)
        + "|\n"
    )
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
            config.save_pretrained(Path(folder))
            for run, setup in setups(folder, config.vocab_size).items():
                plan = plan_of(setup)
                time, parts = max(plan.moments.items(), key=lambda item: sum(item[1].values()))
                sizes = [sum(parts.get(part, 0) for part in column) for column in _PARTS.values()]
                assert sum(sizes) == plan.peak
                assert setup.memory is not None
                fits = "yes" if plan.peak + LIBRARIES["cuda"] <= setup.memory else "no"
                shown = [f"{size / 1e9:.1f}" if size > 5e7 else "" for size in sizes]
                cells = [name, run, f"{setup.memory / 1e9:.0f}", fits, time, *shown]
                sys.stdout.write(f"| {' | '.join(cells)} | {plan.peak / 1e9:.0f} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
