"""Responses of a policy: who draws them, how they become samples, and our own engine."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import PromptBatch, SampleBatch, TokenRows
from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import without_adapter_wrapper
from lit_rlhf.models.handover import context_of
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.ranges import require
from lit_rlhf.rollout.cache_size import cached_tokens_for, rows_for
from lit_rlhf.rollout.decoding import Decoding, Request
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
            drawn: after temperature and truncation, as the engine computed it. 0 where the
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


def collect_samples(
    policy: PolicyModel,
    generator: Generator,
    prompts: PromptBatch,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    samples_per_prompt: int = 1,
    seed: int = 0,
) -> SampleBatch:
    """Draw responses and lay them out as training rows.

    Args:
        policy: the model that speaks.
        generator: the engine.
        prompts: `B` prompts.
        tokenizer: turns tokens into the texts that reward sources read.
        sampling: length, temperature and truncation.
        samples_per_prompt: `K` responses to each prompt, standing together.
        seed: of this rollout.

    Returns:
        `B * K` samples; `group_ids` counts the prompts of this batch.

    Raises:
        ConfigError: a prompt and its response may be longer than the model's context.
    """
    require_room(policy, int(prompts.lengths.max()), sampling)
    generation = generator(
        policy,
        prompts,
        sampling,
        stop_ids=[*stop_token_ids(tokenizer, policy), *sampling.stop_ids],
        decode=functools.partial(decode_tokens, tokenizer),
        samples_per_prompt=samples_per_prompt,
        seed=seed,
    )
    repeated = torch.arange(len(prompts.lengths)).repeat_interleave(samples_per_prompt)
    device_index = repeated.to(prompts.lengths.device)
    prompt_lengths = prompts.lengths[device_index]
    columns = torch.arange(generation.tokens.shape[1], device=prompt_lengths.device)
    return SampleBatch(
        rows=join_rows(prompts.input_ids[device_index], prompt_lengths, generation),
        prompt_lengths=prompt_lengths,
        response_mask=columns < generation.lengths[:, None],
        sampler_logprobs=generation.logprobs,
        finished=generation.finished,
        group_ids=device_index,
        prompts=[prompts.prompts[index] for index in repeated.tolist()],
        responses=decode_responses(tokenizer, generation),
        fields=[prompts.fields[index] for index in repeated.tolist()],
    )


def require_room(policy: PolicyModel, longest: int, sampling: Sampling) -> None:
    """Refuse responses that may go on past the positions that the model knows.

    Args:
        policy: the model that speaks.
        longest: tokens of the longest prompt.
        sampling: says how many tokens a response may have.

    Raises:
        ConfigError: with the longest prompt they are more than the model's context.
    """
    context = context_of(policy.transformers_config)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ConfigError(
            f"max_new_tokens={sampling.max_new_tokens}: with the longest prompt of {longest} "
            f"tokens that is more than the model's context of {context} tokens; lower it, or leave "
            "longer prompts out"
        )


def join_rows(input_ids: Tensor, prompt_lengths: Tensor, generation: Generation) -> TokenRows:
    """Write each response behind its prompt: `[B, P]` and `[B, T]` to rows of `[B, L]`."""
    lengths = prompt_lengths + generation.lengths
    columns = torch.arange(int(lengths.max()), device=lengths.device)  # [L]
    in_prompt = columns < prompt_lengths[:, None]  # [B, L]
    in_response = (columns < lengths[:, None]) & ~in_prompt
    prompt_tokens = input_ids.gather(
        1, columns.clamp(max=input_ids.shape[1] - 1).expand(len(lengths), -1)
    )
    response_columns = (columns - prompt_lengths[:, None]).clamp(
        min=0, max=generation.tokens.shape[1] - 1
    )
    response_tokens = generation.tokens.gather(1, response_columns)
    row_ids = torch.where(in_prompt, prompt_tokens, torch.where(in_response, response_tokens, 0))
    return TokenRows(row_ids, lengths, in_response)


def decode_responses(tokenizer: PreTrainedTokenizerBase, generation: Generation) -> list[str]:
    """Return the responses as texts, without special tokens."""
    sizes = generation.lengths.tolist()
    tokens = [row[:size] for row, size in zip(generation.tokens.tolist(), sizes, strict=True)]
    return decode_tokens(tokenizer, tokens)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """Return rows of tokens as texts, without special tokens."""
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, policy: PolicyModel) -> Sequence[int]:
    """Collect the tokens that end a response.

    They are the EOS tokens of the tokenizer, of the model's configuration and of its generation
    configuration, and the token by which the chat template ends a turn of the assistant.

    Raises:
        ConfigError: there is none, so that no response could ever end.
    """
    model = without_adapter_wrapper(policy.model)
    ids = {tokenizer.eos_token_id}
    for config in (policy.transformers_config.get_text_config(), model.generation_config):
        configured = config.eos_token_id
        ids.update(configured if isinstance(configured, list) else [configured])
    if (end := Renderer(tokenizer).end_of_turn) is not None:
        ids.add(tokenizer.convert_tokens_to_ids(end))
    ids.discard(None)
    if not ids:
        raise ConfigError("neither the tokenizer nor the model names an EOS token")
    return sorted(ids)


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
