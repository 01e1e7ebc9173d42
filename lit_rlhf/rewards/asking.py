"""How a run asks a reward: what fails names it and the rows, on all processes alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import LitRLHFError, RewardError
from lit_rlhf.prompts import Prompt, Response, prompt_text, response_text
from lit_rlhf.ranks import any_rank
from lit_rlhf.rewards.importing import place_of
from lit_rlhf.rewards.source import RewardSource
from lit_rlhf.rewards.watch import TimeLimitError, watched

_log = logging.getLogger(__name__)

_NUM_SHOWN = 2
_NUM_CHARACTERS = 60


def ask(name: str, source: RewardSource, samples: SampleBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Ask a reward about samples; call it on all processes.

    A process whose samples are stand-ins, without a token that counts, does not ask: scores and
    details are 0.

    Args:
        name: of the reward, as the settings call it.
        source: the reward.
        samples: `B` samples.

    Returns:
        Scores `[B]` float32 and the details, see `RewardSource.score_in_detail`.

    Raises:
        RewardError: it failed on a process, took too long, or did not return one score a response.
    """
    fault: Exception | None = None
    device = samples.rows.lengths.device
    scores = torch.zeros(len(samples.responses), device=device)
    details = {detail: torch.zeros_like(scores) for detail in source.details}
    try:
        if samples.response_mask.any():
            scores, details = _ask(name, source, samples)
        if scores.shape != (len(samples.responses),):
            fault = RewardError(
                f"{name}: {type(source).__name__} returned scores of shape {list(scores.shape)} "
                f"for {len(samples.responses)} responses, not [{len(samples.responses)}]"
            )
    except LitRLHFError as error:
        fault = error if isinstance(error, RewardError) else RewardError(f"{name}: {error}")
        fault.__cause__ = error if fault is not error else None
    except Exception as error:
        fault = RewardError(
            f"{name}: {type(source).__name__} raised {type(error).__name__}: {error} "
            f"({place_of(error)}). It was called with "
            f"{first_rows(samples.prompts, samples.responses)}"
        )
        fault.__cause__ = error
    # Others must not wait for a process that is gone.
    some_failed = any_rank(fault is not None, device)
    if fault is not None:
        raise fault
    if some_failed:
        raise RewardError(f"{name} failed on another process, which says why")
    return scores.detach().float(), details


def _ask(name: str, source: RewardSource, samples: SampleBatch) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        with watched(name, source.timeout_s):
            return source.score_in_detail(samples.prompts, samples.responses, samples)
    except TimeLimitError as error:
        if not source.leaves_out_failures:
            raise
        _log.warning("%s; %d responses are left out", error, len(samples.responses))
    nothing = torch.full((len(samples.responses),), torch.nan, device=samples.rows.lengths.device)
    return nothing, {detail: nothing.clone() for detail in source.details}


def first_rows(prompts: Sequence[Prompt], responses: Sequence[Response]) -> str:
    """Return how many rows there are, and the first of them, shortened."""
    shown = [
        f"{_short(prompt_text(prompt))} -> {_short(response_text(response))}"
        for prompt, response in zip(prompts[:_NUM_SHOWN], responses[:_NUM_SHOWN], strict=True)
    ]
    return f"{len(responses)} rows, the first: {'; '.join(shown)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _NUM_CHARACTERS else text[:_NUM_CHARACTERS] + "...")
