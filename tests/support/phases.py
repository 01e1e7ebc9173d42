"""Small runs of the phases: data files, trainers that write nothing, and what a run left behind."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor

from tests.oracles.aggregation import preference_shares
from tests.support.reporting import quiet_trainer

# Lengths differ, so that means over rows, tokens and ranks differ, too.
RESPONSES = ["yes", "no, never", "a", "maybe later", "it is so", "why", "oh my", "good, good"]


def write_rows(path: Path, rows: list[dict]) -> str:
    """Write one JSON object a line; return the path as the data modules take it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demonstrations(num_rows: int = 8) -> list[dict]:
    """Return prompts with responses of different lengths."""
    return [
        {"prompt": f"say {index}: ", "response": RESPONSES[index % len(RESPONSES)]}
        for index in range(num_rows)
    ]


def judged_groups(num_groups: int = 6) -> list[dict]:
    """Return groups of 2 to 4 responses, rated by three labelers of whom some are silent."""
    groups = []
    for index in range(num_groups):
        responses = [RESPONSES[(index + other) % len(RESPONSES)] for other in range(2 + index % 3)]
        length = len(responses)
        ratings = [
            [float((3 * position + index) % 5) for position in range(length)],
            [float((2 * position + index + 1) % 4) for position in range(length)],
            [None if position == index % length else float(position) for position in range(length)],
        ]
        groups.append({"prompt": f"say {index}: ", "responses": responses, "ratings": ratings})
    return groups


def pair_shares(group: dict) -> list[tuple[int, int, float]]:
    """Return `(chosen, rejected, share of judgments for chosen)` of each pair, the better first."""
    shares = preference_shares(group["ratings"], larger_is_better=True)
    pairs = [(a, b, float(share)) for (a, b), share in sorted(shares.items()) if a < b]
    return [(a, b, share) if share >= 0.5 else (b, a, 1 - share) for a, b, share in pairs]


def prompts(num_rows: int = 8) -> list[dict]:
    """Return prompts of different lengths."""
    return [
        {"prompt": "tell me" + " more" * (index % 3) + f" {index}"} for index in range(num_rows)
    ]


def phase_trainer(folder: Path, **changes) -> pl.Trainer:
    """Return a CPU trainer for a phase that writes nothing but what is asked for."""
    options = {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    return quiet_trainer(folder, **options | changes)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters, whole where they are sharded."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.named_parameters()
    }


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between the weights of two modules with equal names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class Recorder(pl.Callback):
    """Keeps the metrics of every training batch, and those of the last validation or test."""

    def __init__(self):
        self.batches = []
        self.held_out = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(_metrics(trainer, "train/"))

    def on_validation_end(self, trainer, pl_module):
        self.held_out = _metrics(trainer, "val/")

    def on_test_end(self, trainer, pl_module):
        self.held_out = _metrics(trainer, "test/")

    def values(self, name: str) -> list[float]:
        """Return a metric over the batches."""
        return [batch[name] for batch in self.batches]


def _metrics(trainer, prefix):
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(prefix)}


class Killed(Exception):  # noqa: N818 - it is no error
    """What a killed process looks like from within."""


class Kill(pl.Callback):
    """Ends a run when a batch begins, after what the one before it has saved."""

    def __init__(self, batch: int):
        self.num_left = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.num_left == 0:
            raise Killed
        self.num_left -= 1
