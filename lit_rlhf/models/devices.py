"""In what GPUs differ from CPUs."""

from __future__ import annotations

import torch

# Attention kernels work in blocks of so many tokens: other widths are padded inside of them, and
# each new one may be compiled or planned anew.
_GPU_BLOCK = 128


def avoid_cudnn_attention() -> None:
    """Keep cuDNN out of torch's choice of attention kernels, in this process.

    torch prefers it on H100 and later. It has given NaN gradients under masks of some widths
    (pytorch#196678), wrong tokens in batched decoding (pytorch#193893), and plans again for every
    new shape, of which decoding has one a step. Flash and memory-efficient attention stay.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def waits_for_gpu(device: torch.device) -> bool:
    """Tell whether reading a number from a tensor makes the host wait for a device."""
    return device.type != "cpu"


def width_multiple(device: torch.device) -> int:
    """Return the number of tokens of which packed rows hold a multiple on a device."""
    return _GPU_BLOCK if device.type == "cuda" else 1
