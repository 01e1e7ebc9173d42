"""Checkpoint files and folders: whole or not at all, verified when read, free of code."""

from lit_rlhf.checkpoints.files import read_verified, write_checkpoint

__all__ = ["read_verified", "write_checkpoint"]
