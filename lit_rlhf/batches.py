"""The tensors that travel between the parts: typed, shaped, and nothing else.

Legend for the whole package: `B` sequences, `P` prompt tokens, `T` response tokens,
`L = P + T` tokens in a row, `V` vocabulary, `K` samples of one prompt, `H` hidden width,
`N` distinct responses, `M` judged pairs.

One layout: a row is `[prompt | response | padding]`, right-padded. Lengths and masks are
explicit; nothing is ever inferred from a pad id, because pad may equal EOS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lit_rlhf.prompts import Prompt, Response


class TokenRows(NamedTuple):
    """Right-padded rows of tokens with the tokens that count marked.

    Attributes:
        input_ids: `[B, L]` int64. The value at padding positions is never read as meaning.
        lengths: `[B]` int64, real tokens in each row (prompt and response).
        response_mask: `[B, L]` bool, True at the response tokens: those that a loss, a
            log-probability or a KL counts. Never True at position 0 (nothing predicts it).
    """

    input_ids: Tensor
    lengths: Tensor
    response_mask: Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return the same rows on `device`."""
        return type(self)(*(tensor.to(device) for tensor in self))

    def select(self, rows: Tensor) -> Self:
        """Return the rows whose indices `[b]` are given, in that order."""
        return type(self)(*(tensor[rows] for tensor in self))

    def silenced(self) -> Self:
        """Return the same rows without a token that counts."""
        return self._replace(response_mask=torch.zeros_like(self.response_mask))

    def select_or_stand_in(self, rows: Tensor) -> Self:
        """Return the rows of a micro-batch `[b]`; of an empty one the first, silenced.

        Processes that share gradients or weights compute together, so that each takes part.
        """
        return self.select(rows) if len(rows) else self.select(rows.new_zeros(1)).silenced()

    @property
    def num_response_tokens(self) -> Tensor:
        """Tokens that count, over the whole batch: int64 scalar."""
        return self.response_mask.sum()


class ComparisonBatch(NamedTuple):
    """Judged pairs over distinct responses: a response in many pairs is here once.

    Attributes:
        rows: the `N` distinct prompt-and-response rows.
        chosen: `[M]` int64, row of the response named first in each pair.
        rejected: `[M]` int64, row of the other one.
        probability: `[M]` float32 in [0, 1], the share of judgments for `chosen`.
        weight: `[M]` float32 >= 0, how much the pair counts.
        group: `[N]` int64, which judged group (one prompt) a row belongs to.
        ratings: `[N]` float32, the mean of people's ratings, NaN where a row has none.
        margin: `[M]` float32, or 0 for all: by how much the score of `chosen` is to be larger.
    """

    rows: TokenRows
    chosen: Tensor
    rejected: Tensor
    probability: Tensor
    weight: Tensor
    group: Tensor
    ratings: Tensor
    margin: Tensor = torch.zeros(())

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch on `device`."""
        return type(self)(self.rows.to(device), *(tensor.to(device) for tensor in self[1:]))


class PromptBatch(NamedTuple):
    """Prompts to respond to.

    Attributes:
        input_ids: `[B, P]` int64, right-padded.
        lengths: `[B]` int64, real tokens in each prompt.
        prompt_ids: `[B]` int64, the position of each prompt in its data set: names its random
            stream, so that a prompt's sample does not depend on who shares its batch.
        prompts: `B` prompts as the records have them: text, or chat messages.
        fields: `B` dictionaries, the further fields of each record, for the reward source.
    """

    input_ids: Tensor
    lengths: Tensor
    prompt_ids: Tensor
    prompts: Sequence[Prompt]
    fields: Sequence[dict[str, Any]]

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch with its tensors on `device`."""
        return self._replace(
            input_ids=self.input_ids.to(device),
            lengths=self.lengths.to(device),
            prompt_ids=self.prompt_ids.to(device),
        )


class ResponseBatch(NamedTuple):
    """Responses to score.

    Attributes:
        rows: the `N` prompt-and-response rows.
        record_ids: `[N]` int64, the position of each response's record in its data set; -1 for
            one that does not count.
        prompts: `N` prompts as the records have them: text, or chat messages.
        responses: `N` responses, likewise.
    """

    rows: TokenRows
    record_ids: Tensor
    prompts: Sequence[Prompt]
    responses: Sequence[Response]

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch with its tensors on `device`."""
        return self._replace(rows=self.rows.to(device), record_ids=self.record_ids.to(device))


class SampleBatch(NamedTuple):
    """Sampled responses, as the generator left them: what a reward source may read.

    Attributes:
        rows: the `B` prompt-and-response rows (`response_mask` there is `[B, L]`).
        prompt_lengths: `[B]` int64.
        response_mask: `[B, T]` bool, True at sampled tokens, the stop token included. Column `t`
            belongs to the `t`-th response token of the row.
        sampler_logprobs: `[B, T]` float32, with which each token was drawn, as the engine that
            drew it says; 0 beyond a row's tokens.
        finished: `[B]` bool, True when the response ended by a stop token, not by the limit.
        group_ids: `[B]` int64, equal for samples of the same prompt.
        prompts: `B` prompts as the records have them: text, or chat messages.
        responses: `B` texts, without special tokens.
        fields: `B` dictionaries, handed through from the prompts.
    """

    rows: TokenRows
    prompt_lengths: Tensor
    response_mask: Tensor
    sampler_logprobs: Tensor
    finished: Tensor
    group_ids: Tensor
    prompts: Sequence[Prompt]
    responses: Sequence[str]
    fields: Sequence[dict[str, Any]]

    def silenced(self) -> Self:
        """Return the same samples without a token that counts."""
        mask = torch.zeros_like(self.response_mask)
        return self._replace(rows=self.rows.silenced(), response_mask=mask)

    def only(self, counts: Tensor) -> Self:
        """Return the same samples, of which rows where `counts` `[B]` is False do not count."""
        return self._replace(response_mask=self.response_mask & counts[:, None])


class RolloutBatch(NamedTuple):
    """Samples with all that a policy update needs, response-aligned like `response_mask`.

    Attributes:
        samples: the sampled responses.
        old_logprobs: `[B, T]` float32 under the policy that is about to be updated, by the
            training forward (the sampler's own are in the samples).
        reference_logprobs: `[B, T]` float32 under the reference, or None without one.
        values: `[B, T]` float32, the critic's estimate before each token, or None.
        scores: `[B]` float32 from the reward source, before the missing-EOS rule.
        is_scored: `[B]` bool, False where the source could not score a response (the score there
            is 0 and does not count), or None where each has a score.
        greedy_scores: `[B]` float32 of the likeliest response to each row's prompt, behind the
            missing-EOS rule, or None where nothing reads them.
        score_details: what the source says beside the score: name -> `[B]` float32.
    """

    samples: SampleBatch
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    values: Tensor | None
    scores: Tensor
    is_scored: Tensor | None = None
    greedy_scores: Tensor | None = None
    score_details: Mapping[str, Tensor] = MappingProxyType({})


def response_window(tokens: Tensor, prompt_lengths: Tensor, num_columns: int) -> Tensor:
    """Cut the response-aligned window out of row-aligned values.

    `[B, L] -> [B, T]`: column `t` of the result is position `prompt_length + t` of the row;
    positions beyond the row read as zero (False for a mask).

    Args:
        tokens: `[B, L]` values of any dtype, aligned with the tokens of the rows.
        prompt_lengths: `[B]` int64.
        num_columns: `T`, the number of response columns to return.

    Returns:
        `[B, T]` of the same dtype.
    """
    positions = prompt_lengths[:, None] + torch.arange(num_columns, device=tokens.device)  # [B, T]
    inside = positions < tokens.shape[1]
    window = tokens.gather(1, positions.clamp(max=tokens.shape[1] - 1))
    return window * inside if window.dtype != torch.bool else window & inside


def cut_by_tokens(
    lengths: Sequence[int], max_rows: int | None, max_tokens: int | None, *, padded: bool = True
) -> list[slice]:
    """Cut rows, in their order, into parts that a forward has memory for.

    Args:
        lengths: tokens of each row.
        max_rows: of a part, or None for any number.
        max_tokens: of a part, or None; a row that is longer is a part of its own.
        padded: count each row as long as the longest of its part.

    Returns:
        The parts; none of no rows.
    """
    parts, start, longest, total = [], 0, 0, 0
    for end, length in enumerate(lengths):
        num_rows = end - start + 1
        tokens = max(longest, length) * num_rows if padded else total + length
        is_full = max_rows is not None and num_rows > max_rows
        is_full = is_full or (max_tokens is not None and tokens > max_tokens)
        if is_full and end > start:
            parts.append(slice(start, end))
            start, longest, total = end, 0, 0
        longest, total = max(longest, length), total + length
    return [*parts, slice(start, len(lengths))] if lengths else []
