"""Checkpoint files and folders: whole or not at all, verified when read, free of code."""

from lit_rlhf.checkpoints.files import LAST_NAME, link_checkpoint, previous_of, write_checkpoint
from lit_rlhf.checkpoints.folders import partial_of, seal_folder
from lit_rlhf.checkpoints.verifying import newest_whole, read_verified, verify_checkpoint

__all__ = [
    "LAST_NAME",
    "link_checkpoint",
    "newest_whole",
    "partial_of",
    "previous_of",
    "read_verified",
    "seal_folder",
    "verify_checkpoint",
    "write_checkpoint",
]
