"""What draws responses from a policy: the protocol, and our own engine in plain PyTorch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.ranges import require
from lit_rlhf.rollout.cache_size import cached_tokens_for, rows_for
from lit_rlhf.rollout.decoding import Decoding
from lit_rlhf.rollout.drawing import Request
from lit_rlhf.rollout.graphs import recorder_for
from lit_rlhf.rollout.own_cache import decode_by_transformers
from lit_rlhf.rollout.sampling import Sampling, uniform_streams

Decode = Callable[[list[list[int]]], list[str]]


class Generation(NamedTuple):
    """Sampled tokens, before they are joined to their prompts.

    Attributes:
        tokens: `[B, T]` int64; what is beyond a row's length has no meaning.
        lengths: `[B]` int64, sampled tokens, the stop token included.
        finished: `[B]` bool, True when a stop token or a stop string ended the response.
        logprobs: `[B, T]` float32, natural logarithm of the probability with which each token was
            drawn: after temperature, bias and truncation, as the engine computed it. 0 where the
            likeliest token is taken, and beyond a row's length.
    """

    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    logprobs: Tensor


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
        decode: Decode | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Draw `samples_per_prompt` responses to each prompt.

        Args:
            policy: the model that speaks.
            prompts: `B` prompts.
            sampling: length, temperature, truncation and stop strings.
            stop_ids: tokens that end a response, EOS among them.
            decode: turns rows of tokens into texts; needed where there are stop strings.
            samples_per_prompt: `K`; the rows of a prompt are together.
            seed: with a prompt's id and the sample's number it names the random stream.

        Returns:
            `B * K` responses.
        """

    def expect(self, longest: int) -> None:  # noqa: B027 - most engines need not know
        """Be told, before the first call, how many tokens a prompt and its response may have."""


@dataclass(frozen=True)
class TorchGenerator(Generator):
    """Decode with a key-value cache, the batch as full as it can be.

    A prompt is computed once for all of its samples; rows that finish leave the batch, and waiting
    prompts take their places. What is drawn does not depend on who else is in the batch.
    Architectures that our cache does not fit decode by transformers' own, more slowly: see
    `PolicyModel.paths`.

    Attributes:
        max_rows: sequences decoded together; null for 128 on a CPU, 512 on a GPU.
        max_cached_tokens: bound of rows times the longest prompt and response, for the memory of
            the cache; fewer rows are decoded together where it is reached. Null for 65,536 on a
            CPU, and on a GPU for as many as half of its free memory holds. Set a number there where
            a resumed run shall repeat the rounding of the first.
        prefill_tokens: prompts that are computed together have so many tokens at most, padding
            included; a longer prompt is by itself.
        cuda_graphs: on a CUDA device, record steps and launch each as one. False computes them
            plainly, which takes less memory.
    """

    max_rows: int | None = None
    max_cached_tokens: int | None = None
    prefill_tokens: int = 32_768
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        """Refuse a batch without rows."""
        require("model.generator.max_rows", self.max_rows, least=1, is_optional=True)
        tokens = self.max_cached_tokens
        require("model.generator.max_cached_tokens", tokens, least=1, is_optional=True)
        require("model.generator.prefill_tokens", self.prefill_tokens, least=1)

    @torch.no_grad()
    def __call__(
        self,
        policy: PolicyModel,
        prompts: PromptBatch,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        decode: Decode | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Draw responses, see `Generator`.

        Raises:
            ConfigError: there are stop strings, but nothing to decode tokens with.
        """
        device = prompts.input_ids.device
        streams = _streams(prompts.prompt_ids, samples_per_prompt)
        request = Request(
            prompts.input_ids,
            prompts.lengths,
            samples_per_prompt,
            uniform_streams(seed, streams, sampling.max_new_tokens).to(device),
            sampling,
            torch.tensor(list(stop_ids), dtype=torch.long, device=device),
            decode,
        )
        with _weights_cast_once(device.type):
            limits = {
                "max_rows": self.max_rows or rows_for(device),
                "max_cached_tokens": self.max_cached_tokens or cached_tokens_for(policy, device),
            }
            if policy.paths.decoding == "own":
                decoding = Decoding(
                    policy,
                    request,
                    **limits,
                    prefill_tokens=self.prefill_tokens,
                    recorder=recorder_for(policy, device) if self.cuda_graphs else None,
                )
                decoding.run()
                drawn = decoding.drawn
            else:
                drawn = decode_by_transformers(policy, request, **limits)
        return Generation(drawn.tokens, drawn.lengths, drawn.finished, drawn.logprobs)


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
