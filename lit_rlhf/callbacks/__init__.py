"""What watches or steers a run from outside: Lightning callbacks and a logger."""

from lit_rlhf.callbacks.adaptive_kl import AdaptiveKLCallback
from lit_rlhf.callbacks.overoptimization import OveroptimizationMonitor
from lit_rlhf.callbacks.samples import SampleTableCallback
from lit_rlhf.callbacks.wandb_logger import WandbAutoLogger

__all__ = [
    "AdaptiveKLCallback",
    "OveroptimizationMonitor",
    "SampleTableCallback",
    "WandbAutoLogger",
]
