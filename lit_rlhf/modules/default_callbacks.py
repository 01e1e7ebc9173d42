"""The callbacks that every run has, from the command line and from Python alike."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging

from lit_rlhf.callbacks.last_checkpoint import LastCheckpoint
from lit_rlhf.callbacks.model_folder import ModelFolder
from lit_rlhf.callbacks.self_checks import SelfChecks
from lit_rlhf.errors import ConfigError


def missing_callbacks(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of every run that a Trainer lacks, see `PhaseModule`.

    Raises:
        ConfigError: a callback would average weights that are not there yet.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise ConfigError(
            "callbacks: StochasticWeightAveraging copies the module before its model is "
            "loaded, and would average nothing; use EMAWeightAveraging"
        )
    if trainer.checkpoint_callback is None:  # it keeps nothing
        return []
    kinds = (SelfChecks, ModelFolder, LastCheckpoint)
    missing = [kind for kind in kinds if not any(isinstance(one, kind) for one in callbacks)]
    # Lightning would put `LastCheckpoint` in its place.
    if any(map(_is_set_by_user, callbacks)):
        missing = [kind for kind in missing if kind is not LastCheckpoint]
    return [kind() for kind in missing]


def _is_set_by_user(callback: Callback) -> bool:
    """Tell whether this is a ModelCheckpoint that is not the one of every Trainer."""
    if type(callback) is not ModelCheckpoint:
        return False
    settings = (callback.dirpath, callback.filename, callback.save_last, callback.save_top_k)
    return settings != (None, None, None, 1) or callback.state_key != ModelCheckpoint().state_key
