"""What watches or steers a run from outside: Lightning callbacks and loggers."""

from lit_rlhf.callbacks.averaged_weights import AveragedWeights
from lit_rlhf.callbacks.csv_logger import ResumableCSVLogger
from lit_rlhf.callbacks.kl_control import KLControl
from lit_rlhf.callbacks.last_checkpoint import LastCheckpoint
from lit_rlhf.callbacks.model_folder import ModelFolder
from lit_rlhf.callbacks.overoptimization import OveroptimizationMonitor
from lit_rlhf.callbacks.prediction_file import PredictionConfig, PredictionFile
from lit_rlhf.callbacks.reference_sync import ReferenceSync
from lit_rlhf.callbacks.samples import SampleTableCallback
from lit_rlhf.callbacks.self_checks import SelfChecks
from lit_rlhf.callbacks.wandb_logger import WandbAutoLogger

__all__ = [
    "AveragedWeights",
    "KLControl",
    "LastCheckpoint",
    "ModelFolder",
    "OveroptimizationMonitor",
    "PredictionConfig",
    "PredictionFile",
    "ReferenceSync",
    "ResumableCSVLogger",
    "SampleTableCallback",
    "SelfChecks",
    "WandbAutoLogger",
]
