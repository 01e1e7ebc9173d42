"""Does a number depend on how much padding its row has? It must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.prompts import Prompt
from lit_rlhf.rewards import LearnedReward, RewardSource

_NUM_EXTRA_COLUMNS = 8


@torch.no_grad()
def padding_gap(compute: Callable[[TokenRows], Tensor], rows: TokenRows) -> float:
    """Compare the shortest row by itself with the same row padded, beside the longest.

    Args:
        compute: rows to `[B]` or `[B, L]` numbers.
        rows: `B` rows; of two rows, or one, little is computed.

    Returns:
        The mean absolute difference over the row's numbers; 0 without rows.
    """
    if len(rows.lengths) == 0:
        return 0.0
    order = rows.lengths.argsort()
    shortest, longest = rows.select(order[:1]), rows.select(order[-1:])
    length = int(shortest.lengths)
    alone = TokenRows(
        shortest.input_ids[:, :length], shortest.lengths, shortest.response_mask[:, :length]
    )
    padded = _pad(TokenRows(*(torch.cat(pair) for pair in zip(shortest, longest, strict=True))))
    numbers = compute(alone)[0].flatten()
    same = compute(padded)[0].flatten()[: len(numbers)]
    return float((numbers - same).float().abs().mean())


def rollout_padding_gaps(
    policy: PolicyModel, sources: Mapping[str, RewardSource], batch: PromptBatch
) -> dict[str, float]:
    """Compare, on prompts, what a policy and the learned ones among some rewards say.

    Other rewards may look at a response's companions on purpose, and are not asked.

    Returns:
        Gaps by the name of the number.
    """
    columns = torch.arange(batch.input_ids.shape[1], device=batch.lengths.device)
    mask = (columns > 0) & (columns < batch.lengths[:, None])
    rows = TokenRows(batch.input_ids, batch.lengths, mask)
    gaps = {
        f"the score of {name}": _score_gap(source, batch.prompts[0], batch.lengths.device)
        for name, source in sources.items()
        if isinstance(source, LearnedReward) and batch.prompts
    }
    gap = padding_gap(lambda rows: policy(rows).logprobs, rows)
    return {"the policy's log-probabilities": gap, **gaps}


def _score_gap(reward: LearnedReward, prompt: Prompt, device: torch.device) -> float:
    """Compare the score of a response by itself with its score beside a longer one."""
    short, long = "yes", "yes " * 16
    alone = reward.score([prompt], [short], device)[0]
    together = reward.score([prompt] * 2, [short, long], device)[0]
    return float((alone - together).abs())


def _pad(rows: TokenRows) -> TokenRows:
    """Append columns that hold some token: what is there has no meaning."""
    ids = rows.input_ids[:, :1].expand(-1, _NUM_EXTRA_COLUMNS)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    return TokenRows(
        torch.cat([rows.input_ids, ids], 1), rows.lengths, torch.cat([rows.response_mask, mask], 1)
    )
