"""How many rows and tokens are decoded together where no setting says it."""

from __future__ import annotations

import torch

from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.policy import PolicyModel

_CPU_ROWS, _GPU_ROWS = 128, 512
CPU_TOKENS = 65_536
# The other half is for prompts being computed and for the logits of a step.
_SHARE_OF_FREE_MEMORY = 0.5


def rows_for(device: torch.device) -> int:
    """Return how many rows are decoded together: a GPU reads its weights once for all of them."""
    return _CPU_ROWS if device.type == "cpu" else _GPU_ROWS


@torch.no_grad()
def cached_tokens_for(policy: PolicyModel, device: torch.device) -> int:
    """Return how many tokens the cache may hold: on a GPU what fits into half of its free memory.

    It is a power of two, so that a little more or less memory changes nothing.

    Args:
        policy: the model that speaks, under the autocast of the decoding.
        device: where it is.
    """
    if device.type != "cuda" or policy.paths.decoding != "own":
        return CPU_TOKENS
    return tokens_within(free_memory(device), bytes_per_token(policy, device))


def tokens_within(free: int, token_bytes: int) -> int:
    """Return how many tokens of `token_bytes` the cache takes where `free` bytes are left."""
    tokens = max(1, int(_SHARE_OF_FREE_MEMORY * free / token_bytes))
    return 1 << (tokens.bit_length() - 1)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has left, those included that torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


def bytes_per_token(policy: PolicyModel, device: torch.device) -> int:
    """Return what the cache holds of a token, by computing one."""
    cache = RowCache(1, 1, size=1)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    policy.next_logits(token, token, torch.ones_like(token, dtype=torch.bool), cache)
    return cache.nbytes
