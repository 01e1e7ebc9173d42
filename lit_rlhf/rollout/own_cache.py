"""Decoding by transformers' `generate` with our draws, for models that our cache does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from lit_rlhf.models.backbone import without_adapter_wrapper
from lit_rlhf.models.own_cache import generate_by_transformers, left_padded
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.rollout.decoding import Drawn, Request


def decode_by_transformers(
    policy: PolicyModel, request: Request, *, max_rows: int, max_cached_tokens: int
) -> Drawn:
    """Draw every response; rows that have ended stay in their batch until its last one has.

    Args:
        policy: the model that speaks.
        request: what is to be drawn.
        max_rows: how many rows at once.
        max_cached_tokens: how many rows times the tokens of the longest.
    """
    drawn = Drawn(request)
    longest = int(request.lengths.max()) + request.sampling.max_new_tokens
    num_rows = max(1, min(max_rows, max_cached_tokens // longest))
    prompt_of = torch.arange(len(drawn.lengths), device=request.lengths.device)
    prompt_of //= request.samples_per_prompt
    lengths = request.lengths[prompt_of]
    for ids in _batches(lengths, num_rows, is_even=policy.paths.decoding != "padded"):
        tokens, _, is_real = left_padded(request.input_ids[prompt_of[ids]], lengths[ids])
        step = _Draw(drawn, ids)
        generate_by_transformers(
            without_adapter_wrapper(policy.model),
            tokens,
            is_real.long(),
            num_tokens=request.sampling.max_new_tokens,
            use_cache=policy.paths.decoding != "uncached",
            processor=step,
            criterion=_Ended(step),
        )
    return drawn


def _batches(lengths: Tensor, num_rows: int, *, is_even: bool) -> Iterator[Tensor]:
    """Yield the places of rows that are decoded together: of one length each, where asked."""
    order = lengths.argsort(descending=True, stable=True)
    parts = [order]
    if is_even:
        counts = lengths[order].unique_consecutive(return_counts=True)[1]
        parts = list(order.split(counts.tolist()))
    for part in parts:
        yield from part.split(num_rows)


class _Draw(LogitsProcessor):
    """Draws a token for each row that goes on, and leaves `generate` no other choice.

    Args:
        drawn: where they are kept.
        ids: `[b]` the responses of this batch.
    """

    def __init__(self, drawn: Drawn, ids: Tensor) -> None:
        self.drawn = drawn
        self.ids = ids
        self.goes_on = torch.ones(len(ids), dtype=torch.bool, device=ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Map the logits of all rows, `[b, V]`, to ones that have only what was drawn."""
        places = self.goes_on.nonzero().squeeze(-1)
        tokens = input_ids[:, -1].clone()  # a row that has ended may hold anything
        if len(places):
            ids = self.ids[places]
            goes_on = self.drawn.draw(ids, scores[places].float())
            self.goes_on[places] = torch.tensor(goes_on, device=ids.device)
            tokens[places] = self.drawn.last_tokens(ids)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Tells `generate` which rows have ended.

    Args:
        step: draws them.
    """

    def __init__(self, step: _Draw) -> None:
        self.step = step

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        """Return `[b]` bool."""
        return ~self.step.goes_on
