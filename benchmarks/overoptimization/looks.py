"""What a run's validations were: the responses are kept, and scored when the run is over.

So a run pays for its own reward only, and other judges may be asked later without another run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.overoptimization.files import write_whole
from lit_rlhf.callbacks.samples import HasValidationSamples
from lit_rlhf.modules.precision import Precision, autocast, choose_precision
from lit_rlhf.rewards import LearnedReward

LOOKS_FILE = "looks.jsonl"
TEXTS = ("prompt", "response")


class KeepLooks(Callback):
    """Write every validation, the one before training, too: `LOOKS_FILE` in the run's folder."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file again, as the run does."""
        _looks_file(trainer).unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a line: the step, and each sample with what the run knows of it."""
        assert isinstance(pl_module, HasValidationSamples)
        row = {"step": trainer.global_step, "samples": pl_module.validation_samples}
        with _looks_file(trainer).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _looks_file(trainer: Trainer) -> Path:
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / LOOKS_FILE


def score(
    model: Path, prompts: Sequence[str], responses: Sequence[str], precision: Precision
) -> Tensor:
    """Let a reward model score responses: `[B]` float32."""
    with autocast(precision):
        return LearnedReward(str(model))(prompts, responses)


def score_looks(looks: Path, models: Mapping[str, Path], file: Path) -> None:
    """Let reward models score what a run wrote.

    Args:
        looks: what `KeepLooks` wrote.
        models: their folders by name.
        file: gets a line a look: `step`, `prompt_ids`, a list for each value that the run logged
            and for each model, `response` the texts. `History` reads it, but for these.
    """
    rows = [json.loads(line) for line in looks.read_text(encoding="utf-8").splitlines()]
    samples = [sample for row in rows for sample in row["samples"]]
    prompts, responses = ([sample[name] for sample in samples] for name in TEXTS)
    precision = choose_precision()  # once: it is measured, and all models are to have the same
    for name, model in models.items():
        scores = score(model, prompts, responses, precision)
        for sample, value in zip(samples, scores.tolist(), strict=True):
            sample[name] = round(value, 4)
    lines = []
    for row in rows:
        names = [name for name in row["samples"][0] if name != "prompt"]
        columns = {name: [sample[name] for sample in row["samples"]] for name in names}
        ids = list(range(len(row["samples"])))
        lines.append(json.dumps({"step": row["step"], "prompt_ids": ids, **columns}) + "\n")
    write_whole(file, "".join(lines).encode())
