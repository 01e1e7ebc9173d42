"""From records to batches: sources, templates, tokens, padding, loaders, and the data modules."""

from lit_rlhf.data.dpo import DPODataModule
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.data.reward import RewardDataModule
from lit_rlhf.data.sft import SFTDataModule
from lit_rlhf.data.sources import SourcedRow, read_rows

__all__ = [
    "DPODataModule",
    "PPODataModule",
    "RewardDataModule",
    "SFTDataModule",
    "SourcedRow",
    "read_rows",
]
