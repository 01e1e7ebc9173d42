"""LightningCLI as every phase uses it: module and data module fixed, the rest from YAML."""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks.timer import Interval
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf import callbacks as _callbacks  # noqa: F401 - named in YAML by their short names
from lit_rlhf import rewards as _rewards  # noqa: F401 - likewise
from lit_rlhf.callbacks import (
    KLControl,
    LastCheckpoint,
    ModelFolder,
    OveroptimizationMonitor,
    PredictionFile,
    SelfChecks,
)
from lit_rlhf.callbacks.last_checkpoint import go_on_where_it_ended
from lit_rlhf.callbacks.redacted_config import RedactedConfig
from lit_rlhf.class_changes import start_anew_on_class_change
from lit_rlhf.config_messages import in_plain_words, short_message, untouched_seeds
from lit_rlhf.data import DATA_MODULES
from lit_rlhf.errors import CheckpointError, ConfigError, LitRLHFError, TrainingError
from lit_rlhf.modules import DPOModule, OnlineDPOModule, PPOModule, RewardModule, SFTModule
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.precision import slowness_of
from lit_rlhf.nulls import refuse_nulls
from lit_rlhf.own_classes import find_classes, load_class
from lit_rlhf.redaction import redact_all
from lit_rlhf.shipped import name_shipped_files

if TYPE_CHECKING:
    from lit_rlhf.dry_run import Plan

# How collectives end when a process is gone: gloo's, and by its documentation NCCL's.
_OF_LOST_PROCESSES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "remote process exiting",
)
_DRY_RUN = "--dry-run"
# Lightning's Timer has this enumeration as a default, which YAML's writer does not know.
yaml.SafeDumper.add_representer(
    Interval, lambda dumper, interval: dumper.represent_str(str(interval.value))
)
# Strategies of notebooks: of the processes that they start, weights and metrics alone come back.
_OF_NOTEBOOKS = ("ddp_spawn", "ddp_fork", "ddp_notebook")
_NAMED_CHECKPOINTS = ("best", "last", "hpc", "registry")  # names that Lightning resolves itself


def run_phase(phase: str, arguments: list[str]) -> PhaseCLI:
    """Run one phase.

    Args:
        phase: "sft", "reward", "ppo", "dpo" or "online-dpo".
        arguments: the Trainer's command, `--config` files and options; with `--dry-run` (or
            `--dry-run=GB` for a device with so much memory) nothing is trained, and what the run
            would need is printed.

    Returns:
        The LightningCLI, with the trainer, module and data module that ran.

    Raises:
        ConfigError: an option is unknown, missing or out of range, or options contradict.
        TrainingError: another process of the run was lost.
    """
    return _open(PhaseCLI, phase, arguments)


def check_options(phase: str, arguments: list[str]) -> None:
    """Refuse options that a phase would refuse to read; nothing that they name is looked for.

    Args:
        phase: as of `run_phase`.
        arguments: likewise.

    Raises:
        ConfigError: an option is unknown, missing or has the wrong type.
    """
    with suppress(_Read):
        _open(_OptionsOnly, phase, arguments)


def _open(cli_class: type[PhaseCLI], phase: str, arguments: list[str]) -> PhaseCLI:
    module_class, data_class = phase_classes(phase)
    options, dry_run = split_dry_run(name_shipped_files(arguments))
    paths, options = find_classes(options)
    module_class = load_class(paths.get("model"), module_class, module_class, "model")
    data_class = load_class(paths.get("data"), data_class, LightningDataModule, "data")
    with readable_errors():
        return cli_class(
            module_class,
            data_class,
            args=options,
            program=f"lit-rlhf {phase}",
            dry_run=dry_run,
            class_paths=paths,
        )


def split_dry_run(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return a phase's arguments without `--dry-run`, and that word if it is there."""
    others = [word for word in arguments if word.split("=")[0] != _DRY_RUN]
    asked = [word for word in arguments if word.split("=")[0] == _DRY_RUN]
    return others, asked[-1] if asked else None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Tell what Lightning refuses as an error of the settings.

    Raises:
        ConfigError: inside, Lightning raised a `MisconfigurationException`, or a `ValueError`,
            `TypeError`, `RuntimeError` or `ImportError` that none of its callees raised.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {str(error).strip()}") from error
    except LitRLHFError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        if any(words in str(error) for words in _OF_LOST_PROCESSES):
            raise TrainingError(
                "another process of the run is gone: killed, out of memory, or ended by an error "
                "that it has printed. Go on with --ckpt_path last"
            ) from error
        if not _is_lightnings_own(error):
            raise
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _is_lightnings_own(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("lightning.")


def phase_classes(phase: str) -> tuple[type[PhaseModule], type[LightningDataModule]]:
    """Return the module and the data module of a phase."""
    modules: dict[str, type[PhaseModule]] = {
        "sft": SFTModule,
        "reward": RewardModule,
        "ppo": PPOModule,
        "dpo": DPOModule,
        "online-dpo": OnlineDPOModule,
    }
    return modules[phase], DATA_MODULES[phase]


class PhaseCLI(LightningCLI):
    """The command line of one phase.

    The tokenizer is the model's; the loaders deal out the data themselves, so that no sampler is
    put around them.

    Attributes:
        plan: what the run would need, after `--dry-run`.
    """

    def __init__(
        self,
        module_class: type[PhaseModule],
        data_class: type[LightningDataModule],
        args: list[str],
        program: str = "lit-rlhf",
        dry_run: str | None = None,
        class_paths: Mapping[str, str] | None = None,
    ) -> None:
        self._dry_run = dry_run
        self._ckpt_path: str | Path | None = None
        self.plan: Plan | None = None
        self._class_paths = class_paths or {}  # "model", "data" -> the class that is named for it
        self._takes_tokenizer = "tokenizer" in inspect.signature(data_class).parameters
        self._source_option = module_class.source_option
        self._classes: dict[str, type] = {"model": module_class, "data": data_class}
        self._parsers: list[LightningArgumentParser] = []  # of the commands
        has_monitor = issubclass(module_class, (PPOModule, OnlineDPOModule))
        self._groups: dict[str, type[Callback]] = {
            "self_checks": SelfChecks,
            **({"kl": KLControl} if issubclass(module_class, PPOModule) else {}),
            **({"monitor": OveroptimizationMonitor} if has_monitor else {}),
            "save_model": ModelFolder,
            "last_checkpoint": LastCheckpoint,
        }
        # The arguments are handed over apart from sys.argv, which the launcher of further
        # processes (ddp) runs again as it is.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        # The frozen reference is meant to be in evaluation mode.
        warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode")
        super().__init__(
            module_class,
            data_class,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=RedactedConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,
                "plugins": [{"class_path": "lit_rlhf.modules.checkpoint_io.AtomicCheckpointIO"}],
            },
            # Raise instead of printing pages of usage; the parsers of the commands do the same.
            parser_kwargs={"prog": program, "exit_on_error": False},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the Trainer's commands that the phases have, with their arguments from elsewhere."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test", "predict")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse the command line and its files.

        Raises:
            ConfigError: an option is unknown, is twice in a file, has the wrong type or is null
                where that says nothing.
        """
        args = name_shipped_files(args)
        with in_plain_words(args, self.options):
            super().parse_arguments(parser, args)
        settings = self.config[self.config["subcommand"]]
        # Of the Trainer's settings Lightning says itself which may be null.
        classes = {"trainer": object, **self._classes, **self._groups}
        for name, group in settings.as_dict().items():
            if name in classes:
                refuse_nulls(classes[name], group, name, args)
        if seeds := untouched_seeds(args, settings):
            rank_zero_info(seeds)
        # Lightning would look for hyper-parameters in a file that is not verified yet.
        self._ckpt_path, settings["ckpt_path"] = settings["ckpt_path"], None

    def options(self) -> list[str]:
        """Return the dotted names of all options of the commands."""
        defaults = [parser.get_defaults() for parser in self._parsers]
        return sorted({name for one in defaults for name in one.keys(branches=True)})

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint to resume from that is not there, before models are loaded.

        Raises:
            CheckpointError: `ckpt_path` names no file or folder.
            ConfigError: the strategy is Lightning's older FSDP, or one for notebooks.
        """
        settings = self.config[self.config["subcommand"]]
        path = settings["ckpt_path"] = self._ckpt_path
        strategy = settings["trainer"]["strategy"]
        name = strategy if isinstance(strategy, str) else strategy.get("class_path", "")
        if (name.startswith("fsdp") and name != "fsdp2") or name.endswith(".FSDPStrategy"):
            raise ConfigError(
                f"trainer.strategy {name}: the phases are not made for Lightning's older FSDP; "
                "take --trainer.strategy fsdp2"
            )
        if name.startswith(_OF_NOTEBOOKS):
            raise ConfigError(
                f"trainer.strategy {name}: a command would not know what its processes did; take "
                "--trainer.strategy ddp"
            )
        if path is not None and path not in _NAMED_CHECKPOINTS and not Path(path).exists():
            raise CheckpointError(f"ckpt_path: {path}: no such checkpoint")

    def before_fit(self) -> None:
        """Find the last part of a run that goes on; under `--dry-run`, fit nothing."""
        if self._dry_run is not None:
            vars(self.trainer)["fit"] = self._tell_needs  # in place of the method, once
            return
        config = self.config_init[self.subcommand]
        if config.get("ckpt_path") == "last" and (found := go_on_where_it_ended(self.trainer)):
            config["ckpt_path"] = str(found)
        self._warn_of_slowness()

    def _tell_needs(self, model: PhaseModule, datamodule: LightningDataModule, **_: Any) -> None:
        """Print what the run would need, in place of `Trainer.fit`.

        Raises:
            ConfigError: what is behind `--dry-run=` is not a number of GB.
        """
        from lit_rlhf.dry_run import memory_of, plan_of, render, setup_of  # noqa: PLC0415 - rare

        assert self._dry_run is not None
        gigabytes = self._dry_run.partition("=")[2]
        needs = setup_of(self.trainer, model, datamodule)
        try:
            available = int(float(gigabytes) * 1e9) if gigabytes else None
        except ValueError as error:
            raise ConfigError(f"{self._dry_run}: a number of GB, such as --dry-run=24") from error
        if available is None:
            available = memory_of(needs.device, self.trainer.num_devices)
        self.plan = plan_of(replace(needs, memory=available))
        sys.stdout.write(render(self.plan, available))

    def _warn_of_slowness(self) -> None:
        device = self.trainer.strategy.root_device.type
        slowness = slowness_of(self.trainer.precision, device)
        if slowness is not None and self.trainer.is_global_zero:
            warnings.warn(slowness, stacklevel=2)

    def before_validate(self) -> None:
        """Warn of a precision that this machine is slow in.

        Raises:
            ConfigError: `--dry-run`, which is of `fit` alone.
        """
        if self._dry_run is not None:
            raise ConfigError("--dry-run: only `fit` has it")
        self._warn_of_slowness()

    before_test = before_predict = before_validate

    def instantiate_classes(self) -> None:
        """Make Trainer, module and data module.

        Raises:
            ConfigError: one of them, or a part of them, refuses its settings.
        """
        config = self.config[self.subcommand]
        for group in self._class_paths:  # no argument of the class; but of the saved settings
            del config[group]["class_path"]
        try:
            super().instantiate_classes()
        except LitRLHFError:
            raise
        except ValueError as error:
            raise ConfigError(short_message(str(error))) from error
        finally:
            for group, path in self._class_paths.items():
                config[group]["class_path"] = path
        if isinstance(self.model, PhaseModule):
            self.model.run_config = self._settings()

    def after_fit(self) -> None:
        """Do not end as if all was well when nothing was learned or a checkpoint is missing.

        Raises:
            TrainingError: no step was taken.
            CheckpointError: one could not be written, nor later under the same name.
        """
        if self.trainer.global_step == 0 and self._dry_run is None:
            raise TrainingError(
                "the run has ended without an optimizer step: the model is as it was. Look at "
                "trainer.max_time, max_epochs, max_steps and limit_train_batches, and at warnings "
                "of skipped steps"
            )
        checkpoints = self.trainer.strategy.checkpoint_io
        if isinstance(checkpoints, AtomicCheckpointIO) and checkpoints.unwritten:
            unwritten = "; ".join(f"{path}: {why}" for path, why in checkpoints.unwritten.items())
            raise CheckpointError(
                f"the run has ended, but not all of its checkpoints could be written: {unwritten}. "
                "Make room and run it again with --ckpt_path last"
            )

    def _settings(self) -> dict[str, Any]:
        """Return the settings of this run as plain values, as `config.yaml` has them.

        Without what it resumes from: a run that was stopped has the lineage of one that was not.
        """
        text = self.parser.dump(self.config, skip_none=False)
        settings: dict[str, Any] = redact_all(yaml.safe_load(text)[self.subcommand])
        settings.pop("ckpt_path", None)
        return settings

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the tokenizer from the model; let every run check itself and be able to go on."""
        start_anew_on_class_change()
        self._parsers.append(parser)
        for part, path in self._class_paths.items():
            parser.add_argument(
                f"--{part}.class_path", type=str, default=path, help="the class that is used."
            )
        if self._takes_tokenizer:
            parser.link_arguments(f"model.{self._source_option}", "data.tokenizer")
        groups = dict(self._groups)
        if list(self.subcommands())[len(self._parsers) - 1] == "predict":
            groups["prediction"] = PredictionFile
        for name, group in groups.items():
            parser.add_class_arguments(group, name, fail_untyped=False, sub_configs=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with the callbacks that every run of the phase has.

        Raises:
            ConfigError: one of them is listed among `trainer.callbacks` as well.
        """
        config = self.config_init[self.subcommand]
        callbacks = config["trainer"]["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        # Lightning refuses a checkpoint callback beside `trainer.enable_checkpointing false`.
        keeps_nothing = config["trainer"]["enable_checkpointing"] is False
        groups = {**self._groups, "prediction": PredictionFile}
        for name, group in groups.items():
            if name not in config:
                continue
            if any(type(one) is group for one in callbacks):
                raise ConfigError(
                    f"trainer.callbacks: {group.__name__} is there without being listed: "
                    "take it out, and set its options by their group (--help lists them)"
                )
            if not (keeps_nothing and group in (LastCheckpoint, ModelFolder)):
                callbacks.append(config[name])
        names = ("max_epochs", "max_steps", "max_time")
        is_endless = [config["trainer"][name] for name in names] == [None, -1, None]
        if is_endless and self.subcommand == "fit":
            rank_zero_info(
                "neither trainer.max_epochs nor trainer.max_steps is set: the run ends after one "
                "epoch (Lightning's own default is 1,000)"
            )
            kwargs["max_epochs"] = 1
        trainer: Trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        return trainer


class _Read(Exception):  # noqa: N818 - it is no error
    """The options of a phase have been read."""


class _OptionsOnly(PhaseCLI):
    """Reads the options of a phase, and ends before anything is seeded, made or run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        super().parse_arguments(parser, args)
        self.before_instantiate_classes()
        raise _Read
