"""Checkpoints straight to disk, verified when read; a write that fails does not end a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_rlhf.checkpoints import kinds_in, read_verified, unreadable_object, write_checkpoint
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.ranges import require

# Of tensors alone; the last two are those of an average.
_LARGE = ("state_dict", "optimizer_states", "current_model_state", "averaging_state")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it once it is whole; verify it on loading.

    Lightning's own first builds the whole file in memory: with AdamW's states three times the
    model, for a moment twice, and the largest memory of the run. A remote path (`s3://...`) is
    left to Lightning, and is not verified.

    A disk that is full or a folder that became read-only is reported, and training goes on with
    the older checkpoint kept.

    Args:
        max_failures: failed writes in a row with which the run ends, at least 1.

    Attributes:
        unwritten: checkpoints whose newest content could not be written, and why.

    Raises:
        ConfigError: `max_failures` is out of range.
    """

    def __init__(self, max_failures: int = 3) -> None:
        super().__init__()
        require("AtomicCheckpointIO.max_failures", max_failures, least=1)
        self.max_failures = max_failures
        self.unwritten: dict[str, str] = {}
        self._num_failures = 0
        self._has_warned = False
        self._known_kinds: set[object] = set()  # of objects that were looked at

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401  (Lightning's signature)
    ) -> None:
        """Save a checkpoint; an older one under the same name stays whole until the rename.

        Raises:
            CheckpointError: this and the writes before it failed, `max_failures` in all.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.note(str(path), error.strerror or str(error))
        else:
            self.note(str(path), None)
            self.warn_of_objects(checkpoint, path)

    def warn_of_objects(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Warn once where no run could go on from a checkpoint: as it is written, not when read.

        What stands beside its weights is written and read in memory, where it has kinds of objects
        that were not there before: at the first checkpoint of a run, and seldom again.

        Args:
            checkpoint: its content.
            path: where it is written.
        """
        rest = {name: value for name, value in checkpoint.items() if name not in _LARGE}
        kinds = kinds_in(rest)
        if self._has_warned or kinds <= self._known_kinds:
            return
        self._known_kinds |= kinds
        found = unreadable_object(rest)
        if found is not None:
            self._has_warned = True
            warnings.warn(
                f"{path}: no run can go on from it: {found} is in it. Keep plain types, tensors "
                "and arrays alone in the states of rewards and callbacks, and in what "
                "save_hyperparameters saves",
                stacklevel=2,
            )

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Verify a checkpoint and read it; pickled code in it is refused, never run.

        Raises:
            CheckpointError: missing, torn, altered, or with more than plain types and tensors.
            ConfigError: `weights_only` is False.
        """
        if weights_only is False:
            raise ConfigError(
                "weights_only false would run code that is pickled in a checkpoint; leave it out"
            )
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        checkpoint: dict[str, Any] = read_verified(Path(path), map_location=map_location)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that a newer one replaces, unless that could not be written."""
        if self._num_failures == 0:
            super().remove_checkpoint(path)

    def note(self, path: str, fault: str | None) -> None:
        """Count a write, and report one that failed.

        Args:
            path: of the checkpoint.
            fault: why it could not be written, None where it was.

        Raises:
            CheckpointError: this and the writes before it failed, `max_failures` in all.
        """
        if fault is None:
            self.unwritten.pop(path, None)
            self._num_failures = 0
            return
        self.unwritten[path] = fault
        self._num_failures += 1
        failed = f"{path}: the checkpoint could not be written ({fault})"
        kept = "what stood there is kept" if Path(path).exists() else "there is none of that name"
        if self._num_failures >= self.max_failures:
            raise CheckpointError(
                f"{failed}, the {self._num_failures}. failure in a row; {kept}. Make room, or "
                "write elsewhere, and go on with --ckpt_path last"
            )
        warnings.warn(
            f"{failed}; {kept}, and training goes on. The run ends with failure "
            f"{self.max_failures} in a row, this is {self._num_failures}",
            stacklevel=2,
        )
