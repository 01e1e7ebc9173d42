"""Losses that train a policy on comparisons directly, without a reward model.

Each is a frozen dataclass under `PreferenceLoss`, in a file of its own.
"""

from lit_rlhf.objectives.preference.aot import AOT
from lit_rlhf.objectives.preference.apo import APODown, APOZero
from lit_rlhf.objectives.preference.bco import BCO
from lit_rlhf.objectives.preference.cpo import CPO
from lit_rlhf.objectives.preference.discopop import DiscoPOP
from lit_rlhf.objectives.preference.divergence import (
    AlphaDivergence,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
)
from lit_rlhf.objectives.preference.dpo import DPO
from lit_rlhf.objectives.preference.exo import EXO
from lit_rlhf.objectives.preference.hinge import Hinge
from lit_rlhf.objectives.preference.ipo import IPO
from lit_rlhf.objectives.preference.kto import KTO
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.nca import NCA
from lit_rlhf.objectives.preference.nll import ChosenNLL
from lit_rlhf.objectives.preference.orpo import ORPO
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.objectives.preference.robust import RobustDPO
from lit_rlhf.objectives.preference.simpo import SimPO
from lit_rlhf.objectives.preference.sppo import SPPOHard
from lit_rlhf.objectives.preference.weighted_sum import WeightedSum

__all__ = [
    "AOT",
    "BCO",
    "CPO",
    "DPO",
    "EXO",
    "IPO",
    "KTO",
    "NCA",
    "ORPO",
    "APODown",
    "APOZero",
    "AlphaDivergence",
    "ChosenNLL",
    "DiscoPOP",
    "Divergence",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "PreferenceLoss",
    "PreferenceOutput",
    "PreferencePairs",
    "ReverseKL",
    "RobustDPO",
    "SPPOHard",
    "SimPO",
    "WeightedSum",
]
