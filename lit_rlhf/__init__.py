"""RLHF with PyTorch Lightning: SFT, reward modelling, PPO and DPO, from ratings to a policy.

The phases and the parts that you plug into them are here; importing the package imports none of
them, nor torch, until you name one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_rlhf.callbacks import (
        AveragedWeights,
        KLControl,
        LastCheckpoint,
        OveroptimizationMonitor,
        PredictionConfig,
        PredictionFile,
        ReferenceSync,
        ResumableCSVLogger,
        SampleTableCallback,
        SelfChecks,
        WandbAutoLogger,
    )
    from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
    from lit_rlhf.models import LoRAConfig
    from lit_rlhf.modules import (
        DPOModule,
        NormalizerConfig,
        OnlineDPOModule,
        OptimizerConfig,
        PPOModule,
        RewardModule,
        SFTModule,
        UpdateConfig,
    )
    from lit_rlhf.objectives import (
        DPO,
        GAE,
        GRPO,
        RLOO,
        AdaptiveKL,
        AdvantageEstimator,
        Advantages,
        FixedKL,
        KLController,
        KLPenalty,
        LossAggregation,
        MissingEOS,
        PolicyLoss,
        PolicyTokens,
        PPOClip,
        PreferenceLoss,
        PreferenceOutput,
        PreferencePairs,
        RewardedTokens,
    )
    from lit_rlhf.rewards import EnsembleReward, FunctionReward, LearnedReward, RewardSource
    from lit_rlhf.rollout import Generator, Sampling, TorchGenerator, VLLMGenerator

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "GAE",
    "GRPO",
    "RLOO",
    "AdaptiveKL",
    "AdvantageEstimator",
    "Advantages",
    "AveragedWeights",
    "DPODataModule",
    "DPOModule",
    "EnsembleReward",
    "FixedKL",
    "FunctionReward",
    "Generator",
    "KLControl",
    "KLController",
    "KLPenalty",
    "LastCheckpoint",
    "LearnedReward",
    "LoRAConfig",
    "LossAggregation",
    "MissingEOS",
    "NormalizerConfig",
    "OnlineDPOModule",
    "OptimizerConfig",
    "OveroptimizationMonitor",
    "PPOClip",
    "PPODataModule",
    "PPOModule",
    "PolicyLoss",
    "PolicyTokens",
    "PredictionConfig",
    "PredictionFile",
    "PreferenceLoss",
    "PreferenceOutput",
    "PreferencePairs",
    "ReferenceSync",
    "ResumableCSVLogger",
    "RewardDataModule",
    "RewardModule",
    "RewardSource",
    "RewardedTokens",
    "SFTDataModule",
    "SFTModule",
    "SampleTableCallback",
    "Sampling",
    "SelfChecks",
    "TorchGenerator",
    "UpdateConfig",
    "VLLMGenerator",
    "WandbAutoLogger",
]

# Lower packages first: a loss alone imports neither Lightning nor transformers.
_HOMES = ("objectives", "rollout", "rewards", "models", "data", "callbacks", "modules")


def __getattr__(name: str) -> object:
    """Import a name of `__all__` when it is first asked for."""
    if name in __all__:
        for home in _HOMES:
            package = importlib.import_module(f"lit_rlhf.{home}")
            if name in package.__all__:
                return globals().setdefault(name, getattr(package, name))
    raise AttributeError(f"module 'lit_rlhf' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List what is here, imported already or not."""
    return sorted({*globals(), *__all__})
