"""Where the last part of a run left its state, with loggers that give each part a new folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.callbacks.last_checkpoint import LastCheckpoint


def go_on_where_it_ended(trainer: Trainer) -> Path | None:
    """Find the newest `last.ckpt` of the run, and let this part write where that one did.

    Lightning looks in this part's own folder alone. Its loggers begin `version_1` behind
    `version_0`, and Weights & Biases a run with another id, so that it would find nothing and
    begin again.

    Returns:
        The checkpoint, or None where Lightning finds the right one by itself, or there is none.
    """
    callbacks = trainer.checkpoint_callbacks
    callback = next((one for one in callbacks if isinstance(one, LastCheckpoint)), None)
    if callback is None or callback.dirpath is not None or not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
    name = f"{callback.CHECKPOINT_NAME_LAST}.ckpt"
    if (folder / version / "checkpoints" / name).exists():
        return None
    found = sorted(folder.glob(f"*/checkpoints/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    callback.dirpath = str(found[-1].parent)
    rank_zero_info(
        f"going on from {found[-1]}, where this part saves, too; its metrics are in a new "
        f"{'run' if logger.version is None else version} of {type(logger).__name__}"
    )
    return found[-1]
