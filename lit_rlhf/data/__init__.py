"""From records to batches: sources, templates, tokens, padding, loaders, and the data modules."""

from typing import Any

from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.dpo import DPODataModule
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.reward import RewardDataModule
from lit_rlhf.data.sft import SFTDataModule
from lit_rlhf.data.sources import read_records

DATA_MODULES: dict[str, type[TextDataModule[Any, Any]]] = {
    "sft": SFTDataModule,
    "reward": RewardDataModule,
    "ppo": PPODataModule,
    "dpo": DPODataModule,
    "online-dpo": PPODataModule,
}

__all__ = [
    "DATA_MODULES",
    "DPODataModule",
    "PPODataModule",
    "RewardDataModule",
    "SFTDataModule",
    "SourcedRecord",
    "read_records",
]
