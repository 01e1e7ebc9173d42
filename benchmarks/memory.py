"""Time and memory of SFT on the demonstration's model and data, with each memory option.

python -m benchmarks.memory [--steps N]

`lit-rlhf demo --prepare` fetches what it reads. Each variant in a process of its own, over the
same batches; ratios are against the first one. It computes in bf16, as weights in bf16 ask: on a
CPU without instructions for it a step takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from resource import RUSAGE_SELF, getrusage
from typing import Any

import lightning
import torch

from benchmarks.workloads import CACHE, MODEL
from lit_rlhf.data import SFTDataModule
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules import OptimizerConfig, SFTModule

VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "activation_checkpointing": {"activation_checkpointing": True},
    "states bf16": {"optimizer": {"states": "bf16"}},
    "states 8bit": {"optimizer": {"states": "8bit"}},
    "weights bf16": {"optimizer": {"weights": "bf16"}},
    "weights and states bf16": {"optimizer": {"weights": "bf16", "states": "bf16"}},
    "all three": {
        "optimizer": {"weights": "bf16", "states": "bf16"},
        "activation_checkpointing": True,
    },
    "lora": {"lora": {}},
    "lora, activation_checkpointing": {"lora": {}, "activation_checkpointing": True},
    "lora, weights bf16": {"lora": {}, "optimizer": {"weights": "bf16"}},
}


class Clock(lightning.Callback):
    """Keeps the seconds of each training batch, and its loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin."""
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self._begin)
        self.losses.append(float(trainer.callback_metrics["train/sft/loss"]))


def measure(variant: str, num_steps: int) -> dict[str, Any]:
    """Train some steps of 32 texts; return seconds a step, MiB at the peak, and the losses."""
    options = dict(VARIANTS[variant])
    optimizer = OptimizerConfig(learning_rate=5e-5, **options.pop("optimizer", {}))
    lora = LoRAConfig() if options.pop("lora", None) is not None else None
    torch.manual_seed(1)
    module = SFTModule(MODEL, lora=lora, optimizer=optimizer, **options)
    rows = str(CACHE / "data" / "sft" / "train.jsonl")
    data = SFTDataModule(MODEL, train=rows, batch_size=32)
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=num_steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[clock],
    )
    trainer.fit(module, data)
    return {
        "step_s": min(clock.seconds[1:]),  # the others were disturbed
        "peak_mib": getrusage(RUSAGE_SELF).ru_maxrss / 1024,
        "losses": [round(loss, 3) for loss in clock.losses],
    }


def main() -> None:
    """Measure every variant, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=VARIANTS)
    options = parser.parse_args()
    if options.only:
        sys.stdout.write(json.dumps(measure(options.only, options.steps)) + "\n")
        return
    base = None
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.memory", "--only", variant]
        command += ["--steps", str(options.steps)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        # Libraries print, too.
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("{")]
        figures = json.loads(line)
        base = base or figures
        sys.stdout.write(
            f"{variant:32} step {figures['step_s']:.2f} s "
            f"({figures['step_s'] / base['step_s']:.2f}), peak {figures['peak_mib']:.0f} MiB "
            f"({figures['peak_mib'] / base['peak_mib']:.2f}), losses {figures['losses']}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
