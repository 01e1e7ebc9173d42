"""Drawing the next token: inverse transform sampling with one uniform number a row.

Exact, several times faster on a CPU than `softmax` and `multinomial`, and each sequence reads its
own random stream, so that its tokens do not depend on who shares its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.ranges import require

_BLOCK = 128  # vocabulary entries summed before the search looks inside a block


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: temperature, then top-k, top-p and min-p.

    Attributes:
        max_new_tokens: a response without a stop token is cut here.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens, 0 for all.
        top_p: the smallest set of tokens with this much probability, 1 for all.
        min_p: only tokens with at least this share of the likeliest one's probability, 0 for all.
        min_new_tokens: stop tokens are not drawn before as many others have been.
        stop_ids: tokens that end a response, beside the EOS of tokenizer and model.
        stop_strings: texts that end a response; the token that completes one is its last.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, by name."""
        require("sampling.max_new_tokens", self.max_new_tokens, least=1)
        require("sampling.temperature", self.temperature, least=0)
        require("sampling.top_k", self.top_k, least=0)
        require("sampling.top_p", self.top_p, above=0, most=1)
        require("sampling.min_p", self.min_p, least=0, most=1)
        require("sampling.min_new_tokens", self.min_new_tokens, least=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"sampling.min_new_tokens is {self.min_new_tokens}, more than "
                f"max_new_tokens {self.max_new_tokens}"
            )
        if any(token < 0 for token in self.stop_ids):
            raise ConfigError(f"stop_ids must be token ids, got {list(self.stop_ids)}")
        if not all(self.stop_strings):
            raise ConfigError("stop_strings: an empty text would end every response")

    @property
    def distortions(self) -> tuple[str, ...]:
        """Name the settings that make samples differ from the policy at its temperature.

        PPO's ratio would be biased by the mass that they take away (detail P3 of the field:
        top_k 0, top_p 1).
        """
        plain = Sampling()
        names = ("top_k", "top_p", "min_p", "min_new_tokens")
        return tuple(name for name in names if getattr(self, name) != getattr(plain, name))


def uniform_streams(seed: int, stream_ids: list[int], num_steps: int) -> Float[Tensor, "B T"]:
    """Draw the uniform numbers of each sequence from its own stream.

    Args:
        seed: of the whole rollout.
        stream_ids: `B` names of sequences; equal names give equal numbers.
        num_steps: `T`.

    Returns:
        `[B, T]` float32 in [0, 1).
    """
    # By name: numpy would take a list with one large number for floats, and round it.
    keys = [np.array([seed % 2**64, stream % 2**64], dtype=np.uint64) for stream in stream_ids]
    rows = [
        np.random.Generator(np.random.Philox(key=key)).random(num_steps, dtype=np.float32)
        for key in keys
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, num_steps)


def truncate_logits(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Set the logits that top-k, top-p and min-p exclude to minus infinity.

    The likeliest token always survives. Source of min-p: Nguyen et al. 2024.
    """
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # Excluded when the mass before the token already reaches top_p.
        is_excluded = running_sums(probabilities) - probabilities >= sampling.top_p
        is_excluded = is_excluded.scatter(-1, order, is_excluded)
        logits = logits.masked_fill(is_excluded, float("-inf"))
    if sampling.min_p > 0:
        lowest = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return logits


def rule_out_stops(
    logits: Float[Tensor, "B V"],
    stop_ids: Int[Tensor, " n"],
    *,
    is_too_short: Bool[Tensor, " B"],
) -> None:
    """Let no response end here that is too short.

    Args:
        logits: of the model; changed in place, as a copy would cost as much as the draw.
        stop_ids: tokens that end a response.
        is_too_short: rows that must not end here.
    """
    logits[:, stop_ids] = logits[:, stop_ids].masked_fill(is_too_short[:, None], float("-inf"))


class DrawnTokens(NamedTuple):
    """One token a row.

    Attributes:
        tokens: `[B]` int64 ids.
        logprobs: `[B]` float32 log-probabilities of the draw.
        is_sound: `[B]` bool, False where the logits were no numbers, and the token means nothing.
    """

    tokens: Tensor
    logprobs: Tensor
    is_sound: Tensor


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], sampling: Sampling
) -> DrawnTokens:
    """Draw one token a row by inverting the cumulative distribution.

    The search runs in two stages, over sums of blocks and then inside one block: the long
    cumulative sum over the vocabulary, slow and inexact in float32, is never formed.

    Args:
        logits: `[B, V]` float32.
        uniforms: `[B]` in [0, 1).
        sampling: temperature and truncation.

    Returns:
        Token ids, and the logarithm of the probability that each had: 0 at temperature 0.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        is_sound = torch.isfinite(logits.gather(-1, tokens[:, None])).squeeze(-1)
        return DrawnTokens(tokens, torch.zeros(tokens.shape, device=tokens.device), is_sound)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    weights = truncate_logits(logits, sampling).softmax(-1)
    if weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK))
    blocks = weights.view(weights.shape[0], -1, _BLOCK)  # [B, V / 128, 128]
    # A block is summed in float32 by torch's pairwise sum, the blocks in float64.
    exact = torch.float32 if blocks.device.type == "mps" else torch.float64  # which MPS lacks
    ends = running_sums(blocks.sum(-1).to(exact))  # [B, V / 128]
    threshold = uniforms.to(exact)[:, None] * ends[:, -1:]
    block = _first_above(ends, threshold)  # [B, 1]
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(-1)]
    place = _first_above(running_sums(inside.to(exact)), threshold - start)
    tokens = block * _BLOCK + place  # [B, 1]
    logprobs = (weights.gather(-1, tokens).to(exact) / ends[:, -1:]).log().float()
    is_sound = torch.isfinite(ends[:, -1])
    return DrawnTokens(tokens.squeeze(-1), logprobs.squeeze(-1), is_sound)


def running_sums(values: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """Return the sums of all values up to each one.

    torch has no deterministic `cumsum` for GPUs and refuses it under `trainer.deterministic`; there
    they are products with triangles of ones.
    """
    if values.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return sums_by_products(values)
    return values.cumsum(-1)


def sums_by_products(values: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """Return the same sums: inside of blocks, and of the blocks before them likewise."""
    length = values.shape[-1]
    ones = torch.ones(_BLOCK, _BLOCK, dtype=values.dtype, device=values.device).triu()
    padded = torch.nn.functional.pad(values, (0, -length % _BLOCK))
    inside = padded.view(len(values), -1, _BLOCK) @ ones  # [B, n / 128, 128]
    if inside.shape[1] > 1:
        totals = inside[:, :, -1]
        inside = inside + (sums_by_products(totals) - totals)[:, :, None]
    return inside.view(len(values), -1)[:, :length]


def _first_above(ends: Tensor, threshold: Tensor) -> Tensor:
    """Return the first index whose cumulative weight exceeds the threshold: `[B, 1]`.

    Entries of weight zero never exceed it first. Should rounding put the threshold at the very
    end, the last entry with weight is taken: the first to reach the total.
    """
    last = (ends < ends[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum((ends <= threshold).sum(-1, keepdim=True), last)
