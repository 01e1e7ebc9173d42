"""Checkpoint files and folders: whole or not at all, verified when read, free of code."""

from lit_rlhf.checkpoints.files import read_verified, write_checkpoint
from lit_rlhf.checkpoints.folders import partial_of, put_in_place, sync

__all__ = ["partial_of", "put_in_place", "read_verified", "sync", "write_checkpoint"]
