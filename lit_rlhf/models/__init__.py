"""Policies, reward models and critics, and how they pass from phase to phase."""

from lit_rlhf.models.backbone import LoRAConfig, apply_lora
from lit_rlhf.models.classifiers import ensure_classifier
from lit_rlhf.models.freezing import freeze
from lit_rlhf.models.handover import (
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    load_trunk,
)
from lit_rlhf.models.policy import PolicyModel, TokenScores
from lit_rlhf.models.saving import save_policy, save_reward_model
from lit_rlhf.models.scalar_head import ScalarHead, ScalarModel

__all__ = [
    "LoRAConfig",
    "PolicyModel",
    "ScalarHead",
    "ScalarModel",
    "TokenScores",
    "apply_lora",
    "ensure_classifier",
    "freeze",
    "load_causal_lm",
    "load_reward_model",
    "load_tokenizer",
    "load_trunk",
    "save_policy",
    "save_reward_model",
]
