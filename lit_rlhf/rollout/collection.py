"""From prompts to samples: joins prompts and responses into rows and into texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import PromptBatch, SampleBatch, TokenRows
from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import without_adapter_wrapper
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.rollout.generation import Generation, Generator
from lit_rlhf.rollout.sampling import Sampling


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
    """
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
