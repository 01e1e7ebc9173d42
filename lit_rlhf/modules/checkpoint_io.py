"""Checkpoints written straight to disk, and never half: a temporary file, synced, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it once it is whole.

    Lightning's own first builds the whole file in memory: with AdamW's states three times the
    model, for a moment twice, and the largest memory of the run. A remote path (`s3://...`) is
    left to Lightning.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401  (Lightning's signature)
    ) -> None:
        """Save a checkpoint; an older one under the same name stays whole until the rename."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        try:
            with partial.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
