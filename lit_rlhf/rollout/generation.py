"""Responses from a policy: KV-cache decoding in plain PyTorch, for any causal language model."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from lit_rlhf.batches import PromptBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.rollout.sampling import Sampling, adjust_logits, draw_tokens, uniform_streams


class Generation(NamedTuple):
    """Sampled tokens, before they are joined to their prompts.

    Attributes:
        tokens: `[B, T]` int64; what stands beyond a row's length has no meaning.
        lengths: `[B]` int64, sampled tokens, the stop token included.
        finished: `[B]` bool, True when a stop token ended the response.
    """

    tokens: Tensor
    lengths: Tensor
    finished: Tensor


class Generator(abc.ABC):
    """Draws responses: our own engine by default, a serving engine behind the same call."""

    @abc.abstractmethod
    def __call__(
        self,
        policy: PolicyModel,
        prompts: PromptBatch,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Draw `samples_per_prompt` responses to each prompt.

        Args:
            policy: the model that speaks.
            prompts: `B` prompts.
            sampling: length, temperature and truncation.
            stop_ids: tokens that end a response, EOS among them.
            samples_per_prompt: `K`; the rows of a prompt stand together.
            seed: with a prompt's id and the sample's number it names the random stream.

        Returns:
            `B * K` responses.
        """


@dataclass(frozen=True)
class TorchGenerator(Generator):
    """Decode with a key-value cache; a prompt is computed once, finished rows leave the batch.

    Attributes:
        max_rows: sequences decoded together; more prompts are taken in turns.
    """

    max_rows: int = 128

    def __post_init__(self) -> None:
        """Refuse a batch without rows."""
        if self.max_rows < 1:
            raise ConfigError(f"generator.max_rows must be at least 1, got {self.max_rows}")

    @torch.no_grad()
    def __call__(
        self,
        policy: PolicyModel,
        prompts: PromptBatch,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Draw responses, see `Generator`."""
        num_prompts = len(prompts.lengths)
        per_turn = max(1, self.max_rows // samples_per_prompt)
        with _weights_cast_once(prompts.input_ids.device.type):
            turns = [
                _decode(
                    policy,
                    prompts.input_ids[start : start + per_turn],
                    prompts.lengths[start : start + per_turn],
                    _streams(prompts.prompt_ids[start : start + per_turn], samples_per_prompt),
                    sampling,
                    list(stop_ids),
                    seed,
                )
                for start in range(0, num_prompts, per_turn)
            ]
        return Generation(*(torch.cat(parts) for parts in zip(*turns, strict=True)))


@contextmanager
def _weights_cast_once(device_type: str) -> Iterator[None]:
    """Let autocast keep the weights that it casts, while they do not change.

    Lightning forbids it that, and every token would cast every layer again: more work, for a few
    rows on a CPU, than the layers themselves.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    try:
        with torch.autocast(device_type, dtype=dtype, cache_enabled=True):
            yield
    finally:
        # A context inside of another one leaves its cache behind.
        torch.clear_autocast_cache()


def _streams(prompt_ids: Tensor, samples_per_prompt: int) -> list[int]:
    # A sample's stream is named by its prompt and its number among the prompt's samples.
    return [
        prompt_id * 2**20 + sample
        for prompt_id in prompt_ids.tolist()
        for sample in range(samples_per_prompt)
    ]


@dataclass
class _Decoding:
    """The rows still being decoded; `rows` are their places in the whole turn."""

    cache: DynamicCache
    attention_mask: Tensor  # [b, cached] bool
    positions: Tensor  # [b] of the next token
    logits: Tensor  # [b, V]
    rows: Tensor  # [b]

    def keep(self, places: Tensor) -> None:
        """Drop every row but these."""
        self.cache.batch_select_indices(places)
        self.attention_mask = self.attention_mask[places]
        self.positions = self.positions[places]
        self.logits = self.logits[places]
        self.rows = self.rows[places]


def _decode(
    policy: PolicyModel,
    input_ids: Tensor,
    lengths: Tensor,
    streams: list[int],
    sampling: Sampling,
    stop_ids: list[int],
    seed: int,
) -> Generation:
    device = input_ids.device
    num_rows, limit = len(streams), sampling.max_new_tokens
    uniforms = uniform_streams(seed, streams, limit).to(device)
    stops = torch.tensor(stop_ids, dtype=torch.long, device=device)
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    response_lengths = torch.full((num_rows,), limit, device=device)
    finished = torch.zeros(num_rows, dtype=torch.bool, device=device)
    state = _prefill(policy, input_ids, lengths, num_rows // len(lengths))
    for step in range(limit):
        forbidden = stops if step < sampling.min_new_tokens else None
        logits = adjust_logits(state.logits, sampling, forbidden)
        drawn = draw_tokens(logits, uniforms[state.rows, step], sampling)  # [b]
        tokens[state.rows, step] = drawn
        is_stop = torch.isin(drawn, stops)
        finished[state.rows[is_stop]] = True
        response_lengths[state.rows[is_stop]] = step + 1
        alive = (~is_stop).nonzero().squeeze(-1)
        if len(alive) == 0 or step + 1 == limit:
            break
        if len(alive) < len(drawn):
            state.keep(alive)
        _extend(policy, state, drawn[alive])
    return Generation(tokens, response_lengths, finished)


def _prefill(
    policy: PolicyModel, input_ids: Tensor, lengths: Tensor, samples_per_prompt: int
) -> _Decoding:
    """Compute each prompt once, left-padded, and repeat its cache for its samples."""
    width = int(lengths.max())
    columns = torch.arange(width, device=input_ids.device)
    padding = (width - lengths)[:, None]  # [B, 1]
    positions = (columns - padding).clamp(min=0)  # [B, P]
    attention_mask = columns >= padding
    cache = policy.new_cache()
    logits = policy.next_logits(input_ids.gather(1, positions), positions, attention_mask, cache)
    state = _Decoding(
        cache, attention_mask, lengths, logits, torch.arange(len(lengths), device=lengths.device)
    )
    if samples_per_prompt > 1:
        state.keep(state.rows.repeat_interleave(samples_per_prompt))
        state.rows = torch.arange(len(state.rows), device=lengths.device)
    return state


def _extend(policy: PolicyModel, state: _Decoding, tokens: Tensor) -> None:
    is_new = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
    state.attention_mask = torch.cat([state.attention_mask, is_new], dim=1)
    state.logits = policy.next_logits(
        tokens[:, None], state.positions[:, None], state.attention_mask, state.cache
    )
    state.positions = state.positions + 1
