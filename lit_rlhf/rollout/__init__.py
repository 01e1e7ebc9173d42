"""Sampling from a policy, and cutting what was sampled into updates."""

from lit_rlhf.rollout.collection import collect_samples
from lit_rlhf.rollout.generation import Generation, Generator, TorchGenerator
from lit_rlhf.rollout.minibatches import UpdatePlan, plan_update
from lit_rlhf.rollout.sampling import Sampling

__all__ = [
    "Generation",
    "Generator",
    "Sampling",
    "TorchGenerator",
    "UpdatePlan",
    "collect_samples",
    "plan_update",
]
