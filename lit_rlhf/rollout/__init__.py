"""Sampling from a policy, and cutting what was sampled into updates."""

from lit_rlhf.rollout.generation import (
    Generation,
    Generator,
    TorchGenerator,
    collect_samples,
    require_room,
)
from lit_rlhf.rollout.minibatches import TokenLimit, UpdatePlan, plan_update
from lit_rlhf.rollout.sampling import Sampling
from lit_rlhf.rollout.vllm import VLLMGenerator

__all__ = [
    "Generation",
    "Generator",
    "Sampling",
    "TokenLimit",
    "TorchGenerator",
    "UpdatePlan",
    "VLLMGenerator",
    "collect_samples",
    "plan_update",
    "require_room",
]
