"""From examples to padded batches of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lit_rlhf.batches import ComparisonBatch, PromptBatch, TokenRows
from lit_rlhf.data.tokenization import Row, tokenize_prompts
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.data.chat_template import Renderer


class GroupExample(NamedTuple):
    """The rows of one record, and of judged responses what people said.

    Attributes:
        rows: of tokens.
        pairs: as indices into the rows.
        ratings: the mean rating of each row, NaN of those without; empty where none has one.
    """

    rows: tuple[Row, ...]
    pairs: tuple[JudgedPair, ...]
    ratings: tuple[float, ...] = ()

    def silenced(self) -> GroupExample:
        """Return the group without its pairs, and with no response token that counts."""
        rows = (row._replace(response_mask=[False] * len(row.input_ids)) for row in self.rows)
        return GroupExample(tuple(rows), ())


class PromptExample(NamedTuple):
    """A prompt to respond to; the attributes are those of `PromptBatch`, for one prompt."""

    input_ids: list[int]
    prompt_id: int
    prompt: Prompt
    fields: dict[str, object]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to fill rows up with: it is never read as meaning, so 0 serves as well."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def collate_rows(rows: Sequence[Row], pad_id: int) -> TokenRows:
    """Right-pad rows to the longest.

    Returns:
        `B = len(rows)` rows of `L` tokens, `L` the longest row's.
    """
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    response_mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        response_mask[i, : len(row.input_ids)] = torch.tensor(row.response_mask)
    lengths = torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int64)
    return TokenRows(input_ids, lengths, response_mask)


def collate_groups(groups: Sequence[GroupExample], pad_id: int) -> ComparisonBatch:
    """Put the rows of all groups below each other, and shift the pairs' indices to match."""
    rows = [row for group in groups for row in group.rows]
    first_rows = list(accumulate((len(group.rows) for group in groups), initial=0))[:-1]
    pairs = [
        pair._replace(chosen=first + pair.chosen, rejected=first + pair.rejected)
        for first, group in zip(first_rows, groups, strict=True)
        for pair in group.pairs
    ]
    ratings = [
        rating for group in groups for rating in group.ratings or [math.nan] * len(group.rows)
    ]
    group_of_row = [i for i, group in enumerate(groups) for _ in group.rows]
    return ComparisonBatch(
        rows=collate_rows(rows, pad_id),
        chosen=torch.tensor([pair.chosen for pair in pairs], dtype=torch.int64),
        rejected=torch.tensor([pair.rejected for pair in pairs], dtype=torch.int64),
        probability=torch.tensor([pair.probability for pair in pairs], dtype=torch.float32),
        weight=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        group=torch.tensor(group_of_row, dtype=torch.int64),
        ratings=torch.tensor(ratings, dtype=torch.float32),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
    )


def collate_prompts(prompts: Sequence[PromptExample], pad_id: int) -> PromptBatch:
    """Right-pad prompts to the longest."""
    rows = [Row(prompt.input_ids, [False] * len(prompt.input_ids)) for prompt in prompts]
    padded = collate_rows(rows, pad_id)
    return PromptBatch(
        input_ids=padded.input_ids,
        lengths=padded.lengths,
        prompt_ids=torch.tensor([prompt.prompt_id for prompt in prompts], dtype=torch.int64),
        prompts=[prompt.prompt for prompt in prompts],
        fields=[prompt.fields for prompt in prompts],
    )


def batch_prompts(
    renderer: Renderer,
    prompts: Sequence[Prompt],
    places: Sequence[str],
    *,
    first_id: int = 0,
    fields: Sequence[dict[str, Any]] | None = None,
) -> PromptBatch:
    """Render and tokenise prompts for a policy, as the data module of PPO does.

    Args:
        renderer: of the policy's tokenizer.
        prompts: one or more.
        places: of each, for errors.
        first_id: of the first prompt; an id names a prompt's random stream.
        fields: of each prompt's record, for rewards.

    Raises:
        DataError: a chat that the tokenizer has no template for, with its place.
    """
    tokens = tokenize_prompts(renderer, prompts, places)
    each = zip(tokens, prompts, fields or [{}] * len(prompts), strict=True)
    examples = [
        PromptExample(ids, id_, prompt, own)
        for id_, (ids, prompt, own) in enumerate(each, first_id)
    ]
    return collate_prompts(examples, padding_id(renderer.tokenizer))
