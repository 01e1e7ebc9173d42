"""LightningCLI as every phase uses it: module and data module fixed, the rest from YAML."""

from __future__ import annotations

import warnings

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_rlhf import callbacks as _callbacks  # noqa: F401 - named in YAML by their short names
from lit_rlhf import rewards as _rewards  # noqa: F401 - likewise
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.modules import DPOModule, PPOModule, RewardModule, SFTModule


def run_phase(phase: str, arguments: list[str]) -> PhaseCLI:
    """Run one phase.

    Args:
        phase: "sft", "reward", "ppo" or "dpo".
        arguments: the Trainer's command, `--config` files and options.

    Returns:
        The LightningCLI, with the trainer, module and data module that ran.
    """
    module_class, data_class = phase_classes(phase)
    return PhaseCLI(module_class, data_class, args=arguments)


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
    ) -> None:
        # The arguments are handed over apart from sys.argv, which the launcher of further
        # processes (ddp) runs again as it stands.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        super().__init__(
            module_class,
            data_class,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the tokenizer from the model."""
        parser.link_arguments("model.policy", "data.tokenizer")
