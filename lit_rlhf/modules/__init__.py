"""The phases as LightningModules: glue between batches, models and objectives."""

from lit_rlhf.modules.dpo import DPOModule
from lit_rlhf.modules.normalizing import NormalizerConfig
from lit_rlhf.modules.online_dpo import OnlineDPOModule
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.modules.reward import RewardModule
from lit_rlhf.modules.sft import SFTModule

__all__ = [
    "DPOModule",
    "NormalizerConfig",
    "OnlineDPOModule",
    "OptimizerConfig",
    "PPOModule",
    "RewardModule",
    "SFTModule",
    "UpdateConfig",
]
