"""Samples as a rollout hands them to a reward source."""

import torch

from lit_rlhf.batches import SampleBatch, TokenRows
from tests.support.tokenizer import tiny_tokenizer


def sample_batch(prompts, responses):
    """Return the texts as a policy with the tiny tokenizer would have sampled them."""
    tokenizer = tiny_tokenizer()
    parts = [
        (tokenizer(prompt)["input_ids"], tokenizer(response)["input_ids"])
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    width = max(len(prompt) + len(response) for prompt, response in parts)
    longest = max(len(response) for _, response in parts)
    ids = [[*prompt, *response] for prompt, response in parts]
    prompt_lengths = torch.tensor([len(prompt) for prompt, _ in parts])
    lengths = torch.tensor([len(row) for row in ids])
    columns = torch.arange(width)
    is_response = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
    return SampleBatch(
        rows=TokenRows(
            torch.tensor([row + [0] * (width - len(row)) for row in ids]), lengths, is_response
        ),
        prompt_lengths=prompt_lengths,
        response_mask=torch.arange(longest) < (lengths - prompt_lengths)[:, None],
        sampler_logprobs=torch.zeros(len(ids), longest),
        finished=torch.zeros(len(ids), dtype=torch.bool),
        group_ids=torch.arange(len(ids)),
        prompts=prompts,
        responses=responses,
        fields=[{}] * len(ids),
    )
