"""Lightning's LearningRateFinder: the rate that it suggests becomes the peak of our schedule."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.number_guard import NumberGuard
from lit_rlhf.modules.resuming import saved_rate
from lit_rlhf.ranks import rank

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule

_log = logging.getLogger(__name__)


class _Unrecorded(NumberGuard):
    """Skips without a word: a search goes on until numbers break."""

    def skip(self, step: int, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Forget the step."""
        self.forget()


def claim_finder(trainer: Trainer, module: PhaseModule) -> None:
    """Let a LearningRateFinder wait for `search_learning_rate`.

    By itself it would search before the phase is prepared, and again in a run that is resumed.

    Raises:
        ConfigError: the phase cannot be searched, or the finder is a class of its own.
    """
    finder = _finder(trainer)
    if finder is None:
        return
    if not module.can_search_rate:
        raise ConfigError(
            "callbacks: LearningRateFinder follows a loss that falls, and that of "
            f"{module.phase} does not: try some values of model.optimizer.learning_rate"
        )
    if type(finder) is not LearningRateFinder:
        raise ConfigError(
            f"callbacks: {type(finder).__name__} is a LearningRateFinder that may search within "
            "the run, where the schedule would replace its rate: take Lightning's own"
        )
    vars(finder)["on_fit_start"] = _wait  # in place of the method


def search_learning_rate(module: PhaseModule) -> None:
    """Let a LearningRateFinder among the callbacks set the peak rate of a run that begins.

    Weights, position in the data and random states are then as before the search, and the
    optimizer is made anew: the run is the one whose settings name the rate.

    Raises:
        ConfigError: there are several processes, the model is sharded, or the finder got no rate
            from its steps.
    """
    trainer = module.trainer
    finder = _finder(trainer)
    if finder is None:
        return
    if trainer.ckpt_path is not None:
        _log.info(
            "LearningRateFinder: the run goes on with the rate of its checkpoint, %.3g",
            module.learning_rate,
        )
        return
    # It would follow the loss of rank zero's rows alone, and cannot put sharded weights back.
    if trainer.world_size > 1 or module.device_mesh is not None:
        raise ConfigError(
            "callbacks: LearningRateFinder cannot search in several processes or sharded models: "
            "search with --trainer.devices 1 --trainer.strategy auto, and set "
            "model.optimizer.learning_rate"
        )
    before = module.learning_rate
    with _only_steps(module):
        finder.lr_find(trainer, module)
    if finder.optimal_lr is None:  # fast_dev_run
        return
    suggested = finder.optimal_lr.suggestion()
    if suggested is None:
        num_finite = sum(map(math.isfinite, finder.optimal_lr.results["loss"]))
        raise ConfigError(
            f"callbacks: LearningRateFinder got {num_finite} finite losses before the run's data "
            "ended or the loss rose, and needs 13: give it more data or epochs, or smaller rates"
        )
    trainer.ckpt_path = None  # of the search's own checkpoint
    trainer.strategy.setup_optimizers(trainer)
    if rank() == 0:
        _tell(suggested, before, is_taken=module.learning_rate != before)


def take_saved_rate(module: PhaseModule, checkpoint: Mapping[str, Any]) -> None:
    """Give a run that goes on the rate that its finder once set, for all that names its rate."""
    trainer, rate = module.trainer_if_any, saved_rate(checkpoint)
    if trainer is not None and _finder(trainer) is not None and rate is not None:
        module.learning_rate = rate


@contextmanager
def _only_steps(module: PhaseModule) -> Iterator[None]:
    """Validate nothing, and let numbers break, as long as this lasts."""
    trainer, guard = module.trainer, module.guard
    interval = trainer.check_val_every_n_epoch
    trainer.check_val_every_n_epoch = sys.maxsize
    module.guard = _Unrecorded(guard.max_skipped_steps)
    try:
        yield
    finally:
        module.guard = guard
        trainer.check_val_every_n_epoch = interval


def _tell(suggested: float, before: float, *, is_taken: bool) -> None:
    if is_taken:
        _log.info(
            "LearningRateFinder: model.optimizer.learning_rate is %.3g, was %.3g", suggested, before
        )
    else:
        _log.info(
            "LearningRateFinder suggests %.3g; model.optimizer.learning_rate stays %.3g",
            suggested,
            before,
        )


def _finder(trainer: Trainer) -> LearningRateFinder | None:
    return next(iter(callbacks_of(trainer, LearningRateFinder)), None)


def _wait(*_: object) -> None:
    """Do nothing, when the run begins."""
