"""Time and peak memory of whole SFT steps, by the options that save memory: a Markdown table.

python -m benchmarks.memory [OPTION ...]

Each option in a process of its own; ratios are against the first that is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from benchmarks.workloads import MODEL, ROWS
from lit_rlhf.data import SFTDataModule
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.modules import OptimizerConfig, SFTModule

NUM_WARM, NUM_TIMED = 1, 4
_BATCH_SIZE = 32
_OPTIMIZER = OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup_fraction=0.0)


class Option(NamedTuple):
    """What differs from the default.

    Attributes:
        title: in the table.
        settings: of `SFTModule`.
        micro_batches: the batch is cut into so many.
        precision: of the Trainer.
    """

    title: str
    settings: dict[str, Any]
    micro_batches: int = 1
    precision: str = "32-true"


OPTIONS = {
    "default": Option("the default", {}),
    "micro-batches": Option("`trainer.accumulate_grad_batches: 4`, a quarter of the batch", {}, 4),
    "checkpointing": Option("`activation_checkpointing: true`", {"activation_checkpointing": True}),
    "states-bf16": Option(
        "`optimizer.states: bf16`", {"optimizer": replace(_OPTIMIZER, states="bf16")}
    ),
    "states-8bit": Option(
        "`optimizer.states: 8bit`", {"optimizer": replace(_OPTIMIZER, states="8bit")}
    ),
    "combined": Option(
        "checkpointing, states in bf16, four micro-batches",
        {"activation_checkpointing": True, "optimizer": replace(_OPTIMIZER, states="bf16")},
        4,
    ),
    "lora": Option("`model.lora`, rank 16", {"lora": LoRAConfig(rank=16, alpha=32.0)}),
    "lora-combined": Option(
        "`model.lora`, checkpointing, four micro-batches",
        {"lora": LoRAConfig(rank=16, alpha=32.0), "activation_checkpointing": True},
        4,
    ),
    "all-bf16": Option(
        "states and weights in bf16, `trainer.precision: bf16-mixed`",
        {"optimizer": replace(_OPTIMIZER, states="bf16", weights="bf16")},
        precision="bf16-mixed",
    ),
}
# A step of bf16 products takes minutes on a CPU without instructions for them: by name alone.
_UNASKED = tuple(name for name in OPTIONS if name != "all-bf16")


class _Timed(Callback):
    """Keeps the seconds of each optimizer step, micro-batches together."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.seconds.append(time.perf_counter() - self._start)


def measure(option: Option) -> dict[str, float]:
    """Train in this process on the rows of the SFT workload.

    Returns:
        Seconds of the first step and of the median of the later ones; the peak in GiB.
    """
    module = SFTModule(MODEL, **{"optimizer": _OPTIMIZER, **option.settings})
    data = SFTDataModule(
        MODEL,
        train=str(ROWS / "sft.jsonl"),
        batch_size=_BATCH_SIZE // option.micro_batches,
        columns={"response": "completion"},
    )
    timed = _Timed()
    trainer = Trainer(
        accelerator="cpu",
        precision=option.precision,  # type: ignore[arg-type]
        max_steps=NUM_WARM + NUM_TIMED,
        gradient_clip_val=1.0,
        accumulate_grad_batches=option.micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[timed],
    )
    trainer.fit(module, data)
    later = sorted(timed.seconds[NUM_WARM:])
    peak = getrusage(RUSAGE_SELF).ru_maxrss / 2**20
    return {"first": timed.seconds[0], "step": later[len(later) // 2], "gib": peak}


def main() -> None:
    """Print a line for each option that is named, or for all that any CPU computes in time."""
    if sys.argv[1:2] == ["--only"]:
        sys.stdout.write(json.dumps(measure(OPTIONS[sys.argv[2]])) + "\n")
        return
    sys.stdout.write(
        "| option | first step | step | to the first row | peak | to the first row |\n"
    )
    sys.stdout.write("| --- " * 6 + "|\n")
    base = None
    for name in sys.argv[1:] or _UNASKED:
        command = [sys.executable, "-m", "benchmarks.memory", "--only", name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        # Libraries print, too.
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("{")]
        figures = json.loads(line)
        base = base or figures
        sys.stdout.write(
            f"| {OPTIONS[name].title} | {figures['first']:.1f} s | {figures['step']:.2f} s "
            f"| {figures['step'] / base['step']:.2f} | {figures['gib']:.2f} GiB "
            f"| {figures['gib'] / base['gib']:.2f} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
