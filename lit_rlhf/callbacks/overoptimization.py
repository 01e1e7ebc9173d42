"""Watches PPO and online DPO for over-optimisation, and does something about it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_rlhf.callbacks.kl_control import KLControl
from lit_rlhf.callbacks.model_folder import ModelFolder, SavesModel
from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.handover import BEST_FOLDER, is_adapter
from lit_rlhf.overoptimization.alarm import COLUMNS, Alarm, explain
from lit_rlhf.overoptimization.history import History
from lit_rlhf.overoptimization.report import write_report
from lit_rlhf.overoptimization.sequential_test import DivergenceTest
from lit_rlhf.ranges import require

Action = Literal["warn", "tighten", "stop", "roll_back", "off"]

JUDGE = "validation"  # that is tested, if no other one is named
PROXY = "reward"  # the name of the optimised reward among the validation values
FOLDER = "overoptimization"
_LARGE_RUN = 10  # tests; with fewer prompts than such a run needs for an alarm, the run is told

_log = logging.getLogger(__name__)


@runtime_checkable
class HasValidationValues(Protocol):
    """A module that leaves the values of its last validation, of this process's prompts.

    `validation_values` has one dictionary a batch: `prompt_id` `[B]` (-1 for stand-ins), and
    every value by its name, `[B]` each; `reward` and, where `computes_kl` says so, `kl` among
    them. In `abstaining_values` a NaN says that a response cannot be scored. `phase` is the group
    of its metrics.
    """

    phase: str
    validation_values: list[dict[str, Tensor]]
    judges: dict[str, Any]

    @property
    def abstaining_values(self) -> list[str]:
        """Names of values that may be NaN."""

    @property
    def computes_kl(self) -> bool:
        """Whether the KL to a reference is known."""


class OveroptimizationMonitor(Callback):
    """Tests at every validation whether the validation reward falls while the reward rises.

    Everything is taken from the validation that takes place anyway: held-out prompts, each from
    its fixed random stream, by `model.reward`, all `model.judges`, KL, surprisal, length and
    repetition. The test is `lit_rlhf.overoptimization.sequential_test`, which also says what its
    false-alarm rate rests on. Every process comes to the same decision. With
    `trainer.num_sanity_val_steps: -1` the policy before training is the first validation.

    The run's folder gets `overoptimization/` with each prompt's values, the curves against
    `sqrt(KL)` and a page with the table of each alarm; `val/PHASE/overoptimization_p` is logged.
    Weights & Biases gets the picture and the table.

    Args:
        validation: the judge that is tested, by its name in `model.judges`: a reward (best an
            `EnsembleReward`) of other texts and raters, which the policy never trains against.
            null for the one called `validation`; the monitor is off in a run without it.
        false_alarm_rate: bound for the probability of any false alarm in the whole run.
        min_fall: a fall too small for an alarm, in deviations of the validation reward over the
            prompts at the first validation.
        action: at an alarm, "warn"; "tighten" the target of `KLControl`; "stop" training; or
            "roll_back": put back the weights of `best/`, which have the best validation reward,
            and stop. "off" tests nothing.
        tighten_factor: the KL target is multiplied by it, in (0, 1).

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(
        self,
        validation: str | None = None,
        false_alarm_rate: float = 0.05,
        min_fall: float = 0.0,
        action: Action = "warn",
        tighten_factor: float = 0.5,
    ) -> None:
        DivergenceTest(false_alarm_rate, min_fall)  # refuses what is out of range
        if action not in get_args(Action):
            raise ConfigError(f"monitor.action is {action!r}; expected one of {get_args(Action)}")
        require("monitor.tighten_factor", tighten_factor, above=0, below=1)
        if action != "tighten" and tighten_factor != 0.5:
            raise ConfigError(
                f"monitor.tighten_factor={tighten_factor} has no effect with monitor.action "
                f"{action}: leave it out, or set monitor.action to tighten"
            )
        self.validation = validation or JUDGE
        self.is_on = action != "off"
        # By default it is on wherever it can be; asked for by name, it is on or refused.
        self._is_default = validation is None and action == "warn"
        self.false_alarm_rate = false_alarm_rate
        self.min_fall = min_fall
        self.action: Action = action
        self.tighten_factor = tighten_factor
        self._phase = "ppo"  # of the module that is watched
        self.history = History()
        self.p_values: list[float] = []
        self.alarms: list[Alarm] = []
        self._first_reference = 0  # no validation before it is a reference
        self._num_tests = 0
        self._is_new_alarm = False
        self._was_ended = False  # by an alarm, before the checkpoint that is resumed

    @property
    def metric(self) -> str:
        """The name under which the validation reward is logged."""
        return f"val/{self._phase}/{self.validation}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run that cannot be watched, or on which the action could not be taken.

        A run without the default judge is not watched, and a line says so.

        Raises:
            ConfigError: a judge that was asked for or the KL is missing; or "tighten" without an
                adaptive target, or "roll_back" without a `best/` by the validation reward, or with
                merged adapters.
        """
        if stage != "fit" or not self.is_on:
            return
        if not isinstance(pl_module, HasValidationValues):
            raise ConfigError(
                "callbacks: OveroptimizationMonitor reads `validation_values`, but "
                f"{type(pl_module).__name__} has none; use it with PPOModule "
                "or OnlineDPOModule only"
            )
        self._phase = pl_module.phase
        can_watch = self.validation in pl_module.judges and pl_module.computes_kl
        if self._is_default and not can_watch:
            self.is_on = False
            rank_zero_info(
                "Over-optimisation is not watched: that needs the KL and a reward called "
                f"'{JUDGE}' in model.judges, which the policy never trains against; or name "
                "another judge by --monitor.validation"
            )
            return
        if self.validation not in pl_module.judges:
            known = ", ".join(pl_module.judges) or "none"
            raise ConfigError(
                f"monitor.validation: the judge '{self.validation}' is not in model.judges, which "
                f"has {known}; name one of them, or add a reward that the policy never trains "
                "against"
            )
        if not pl_module.computes_kl:
            raise ConfigError(
                "monitor: its curves are drawn against the KL, which a run with model.kl_penalty "
                "null, or a preference loss without reference, does not compute; choose another "
                "(kl.coefficient may be 0), or set monitor.action to off"
            )
        if self.action == "tighten":
            _kl_control(trainer).check_target()
        if self.action == "roll_back":
            _best_folder(trainer, pl_module, self.metric)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to roll back weights that are spread over processes.

        Raises:
            ConfigError: "roll_back" with a sharded strategy.
        """
        if self.action == "roll_back" and pl_module.device_mesh is not None:
            raise ConfigError(
                "monitor.action roll_back does not go with weights that are sharded over "
                "processes; use stop, and start again from best/"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run at once that an alarm has ended before."""
        if self._was_ended and self.action in {"stop", "roll_back"}:
            _log.warning(
                "The alarm at step %d has ended this run, and it does not go on. To train on "
                "nevertheless: --monitor.action warn",
                self.alarms[-1].step,
            )
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation and test it."""
        if not self.is_on or not _is_look(trainer):
            return
        assert isinstance(pl_module, HasValidationValues)  # seen in `setup`
        values = _gather(pl_module)
        ids = values.pop("prompt_id").astype(int).tolist()
        abstaining = pl_module.abstaining_values
        if self.history.add(trainer.global_step, ids, values, abstaining):
            self._num_tests += self._has_reference
            self.p_values.append(math.nan)
        if len(self.history.looks) == 1:
            self._tell_if_blind(len(ids))
        self._test(trainer.global_step)
        if not math.isnan(self.p_values[-1]):
            pl_module.log(f"val/{self._phase}/overoptimization_p", self.p_values[-1])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, and act on an alarm."""
        if not self.is_on or not _is_look(trainer):
            return
        picture = self._write(trainer, with_picture=self._is_new_alarm)
        if not self._is_new_alarm:
            return
        self._is_new_alarm = False
        alarm = self.alarms[-1]
        if trainer.is_global_zero:
            _log.warning("%s", alarm.text())
            _log_to_wandb(trainer, picture, alarm)
        if self.action == "tighten":
            _kl_control(trainer).tighten(self.tighten_factor)
        elif self.action == "roll_back":
            _roll_back(trainer, pl_module, _best_folder(trainer, pl_module, self.metric))
        if self.action in {"stop", "roll_back"}:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last picture."""
        if self.is_on and self.history.looks:
            picture = self._write(trainer, with_picture=True)
            if trainer.is_global_zero:
                _log_to_wandb(trainer, picture, None)

    def state_dict(self) -> dict[str, Any]:
        """Return all validations and alarms, in plain types."""
        return {
            "history": self.history.state_dict(),
            "p_values": list(self.p_values),
            "alarms": [alarm.state_dict() for alarm in self.alarms],
            "first_reference": self._first_reference,
            "num_tests": self._num_tests,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.history = History.from_state_dict(state_dict["history"])
        self.p_values = list(state_dict["p_values"])
        self.alarms = [Alarm.from_state_dict(alarm) for alarm in state_dict["alarms"]]
        self._first_reference = state_dict["first_reference"]
        self._num_tests = state_dict["num_tests"]
        self._was_ended = bool(self.alarms)

    @property
    def _has_reference(self) -> bool:
        return len(self.history.looks) - 1 > self._first_reference

    def _test(self, step: int) -> None:
        if not self._has_reference:
            return
        validation, proxy = self.history.values(self.validation), self.history.values(PROXY)
        deviation = float(np.nanstd(validation[0], ddof=1)) if validation.shape[1] > 1 else 0.0
        test = DivergenceTest(self.false_alarm_rate, self.min_fall * deviation)
        contrast = test.examine(
            validation, proxy, number=self._num_tests, start=self._first_reference
        )
        assert contrast is not None  # there is a reference
        self.p_values[-1] = contrast.p_value
        if contrast.p_value > self.false_alarm_rate:
            return
        self._is_new_alarm = True
        self._first_reference = len(self.history.looks) - 1
        self.alarms.append(
            Alarm(
                step=step,
                reference_step=self.history.looks[contrast.reference].step,
                window=contrast.window,
                number=self._num_tests,
                num_prompts=len(self.history.prompt_ids),
                p_value=contrast.p_value,
                false_alarm_rate=self.false_alarm_rate,
                action=self.action,
                rows=explain(self.history, contrast, [self.validation, PROXY]),
            )
        )

    def _tell_if_blind(self, num_prompts: int) -> None:
        """With few prompts z, at most the root of their number, can never be large enough."""
        needed = DivergenceTest(self.false_alarm_rate).critical_value(_LARGE_RUN, 1) ** 2
        if num_prompts < needed:
            _log.warning(
                "OveroptimizationMonitor: %d validation prompts are too few for an alarm at test "
                "%d of a run, which needs at least %d, however large the fall; set "
                "data.limit_validation higher",
                num_prompts,
                _LARGE_RUN,
                math.ceil(needed),
            )

    def _write(self, trainer: Trainer, *, with_picture: bool) -> Path:
        """Write the report on rank zero; return where the picture is."""
        root = trainer.log_dir or trainer.default_root_dir  # on every rank: a broadcast
        folder = Path(root) / FOLDER
        if not trainer.is_global_zero:
            return folder
        return write_report(
            folder,
            self.history,
            self.p_values,
            self.alarms,
            proxy=PROXY,
            validation=self.validation,
            with_picture=with_picture,
        )


def _is_look(trainer: Trainer) -> bool:
    """Tell whether a validation is one of a training run, over all of its prompts."""
    if trainer.state.fn != TrainerFn.FITTING:
        return False
    return not trainer.sanity_checking or math.isinf(trainer.num_sanity_val_steps)


def _gather(module: HasValidationValues) -> dict[str, Any]:
    """Return every value of all processes' prompts: `[n]` arrays by name."""
    assert isinstance(module, LightningModule)
    flat = {}
    for name in module.validation_values[0]:
        own = torch.cat([batch[name] for batch in module.validation_values])
        everyones = module.all_gather(own)  # [B], with several processes [world size, B]
        assert isinstance(everyones, Tensor)
        flat[name] = everyones.flatten().cpu()
    counts = flat["prompt_id"] >= 0
    return {name: value[counts].double().numpy() for name, value in flat.items()}


def _kl_control(trainer: Trainer) -> KLControl:
    if found := callbacks_of(trainer, KLControl):
        return found[0]
    raise ConfigError(
        "monitor.action tighten lowers the target of KLControl, and the Trainer has none; add one, "
        "or choose another action"
    )


def _best_folder(trainer: Trainer, module: LightningModule, metric: str) -> ModelFolder:
    for callback in callbacks_of(trainer, ModelFolder):
        if callback.metric(module) == metric:
            assert isinstance(module, SavesModel)
            if module.lora is not None and (callback.merge or is_adapter(module.source)):
                raise ConfigError(
                    "monitor.action roll_back cannot take merged "
                    "adapters apart; set save_model.merge to false and start from a model that "
                    "is not a folder of adapters, or choose another action"
                )
            return callback
    raise ConfigError(
        "monitor.action roll_back goes back to best/, which the run does not keep by this "
        f"metric; set save_model.monitor to {metric}"
    )


def _roll_back(trainer: Trainer, module: LightningModule, best: ModelFolder) -> None:
    if best.best_score is None:
        _log.warning(
            "the best validation was before training: nothing to roll back to, see model.policy"
        )
        return
    folder = best.folder(trainer, BEST_FOLDER)
    assert isinstance(module, SavesModel)
    module.load_saved(folder)
    _log.info("weights are those of %s again", folder)


def _log_to_wandb(trainer: Trainer, picture: Path, alarm: Alarm | None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            if picture.exists():
                logger.log_image("val/overoptimization", [str(picture)])
            if alarm is not None:
                logger.log_table("val/alarm", columns=list(COLUMNS), data=alarm.cells())
