"""LightningCLI as every phase uses it: module and data module fixed, the rest from YAML."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_rlhf import callbacks as _callbacks  # noqa: F401 - named in YAML by their short names
from lit_rlhf import rewards as _rewards  # noqa: F401 - likewise
from lit_rlhf.callbacks import RankWatchCallback
from lit_rlhf.callbacks.rank_watch import lost_process
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import CheckpointError, ConfigError, LitRLHFError, TrainingError
from lit_rlhf.modules import DPOModule, PPOModule, RewardModule, SFTModule
from lit_rlhf.modules.precision import slowness_of

_NAMED_CHECKPOINTS = ("best", "last", "hpc", "registry")  # names that Lightning resolves itself


def run_phase(phase: str, arguments: list[str]) -> PhaseCLI:
    """Run one phase.

    Args:
        phase: "sft", "reward", "ppo" or "dpo".
        arguments: the Trainer's command, `--config` files and options.

    Returns:
        The LightningCLI, with the trainer, module and data module that ran.

    Raises:
        ConfigError: an option is unknown, missing or out of range, or options contradict.
        TrainingError: another process of the run was lost.
    """
    module_class, data_class = phase_classes(phase)
    try:
        return PhaseCLI(module_class, data_class, args=arguments, program=f"lit-rlhf {phase}")
    except ArgumentError as error:
        raise ConfigError(short_message(str(error))) from error
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error
    except LitRLHFError:
        raise
    except RuntimeError as error:
        # What a collective says of it names nobody.
        if (lost := lost_process(error)) is not None:
            raise TrainingError(f"{lost}; go on with --ckpt_path last") from error
        raise


def phase_classes(phase: str) -> tuple[type[LightningModule], type[LightningDataModule]]:
    """Return the module and the data module of a phase."""
    phases: dict[str, tuple[type[LightningModule], type[LightningDataModule]]] = {
        "sft": (SFTModule, SFTDataModule),
        "reward": (RewardModule, RewardDataModule),
        "ppo": (PPOModule, PPODataModule),
        "dpo": (DPOModule, DPODataModule),
    }
    return phases[phase]


class PhaseCLI(LightningCLI):
    """The command line of one phase.

    The tokenizer is the model's; the loaders deal out the data themselves, so that no sampler is
    put around them.
    """

    def __init__(
        self,
        module_class: type[LightningModule],
        data_class: type[LightningDataModule],
        args: list[str],
        program: str = "lit-rlhf",
    ) -> None:
        # The arguments are handed over apart from sys.argv, which the launcher of further
        # processes (ddp) runs again as it stands.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        # The frozen reference is meant to be in evaluation mode.
        warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode")
        super().__init__(
            module_class,
            data_class,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
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
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint to resume from that is not there, before models are loaded.

        Raises:
            CheckpointError: `ckpt_path` names no file or folder.
        """
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path is not None and path not in _NAMED_CHECKPOINTS and not Path(path).exists():
            raise CheckpointError(f"ckpt_path: {path}: no such checkpoint")

    def before_fit(self) -> None:
        """Warn of a precision that this machine is slow in."""
        device = self.trainer.strategy.root_device.type
        slowness = slowness_of(self.trainer.precision, device)
        if slowness is not None and self.trainer.is_global_zero:
            warnings.warn(slowness, stacklevel=2)

    before_validate = before_test = before_fit

    def instantiate_classes(self) -> None:
        """Make Trainer, module and data module.

        Raises:
            ConfigError: one of them, or a part of them, refuses its settings.
        """
        try:
            super().instantiate_classes()
        except LitRLHFError:
            raise
        except ValueError as error:
            raise ConfigError(short_message(str(error))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the tokenizer from the model; let every run watch over its processes."""
        parser.link_arguments("model.policy", "data.tokenizer")
        parser.add_lightning_class_args(RankWatchCallback, "rank_watch")


# What the config parser says about the alternatives of a type that were not meant, and its lists.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value|"
    r"-? ?Not a valid subclass of|Subclass types expect one of:|- a class path|- a dict w|"
    r"- Expected a <class 'NoneType'>|- Expected a path but "
)


def short_message(message: str) -> str:
    """Return what the config parser complains about, on one line and without what it did not mean.

    Args:
        message: of the parser's error.
    """
    lines = [line.strip() for line in message.splitlines()]
    kept = " ".join(line.removeprefix("- ") for line in lines if line and not _NOISE.match(line))
    kept = re.sub(r'Parser key "([^"]*)":', r"\1:", kept)
    kept = re.sub(r"<class '([\w.]+)'>", r"\1", kept)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"value out of \1", kept) or message
