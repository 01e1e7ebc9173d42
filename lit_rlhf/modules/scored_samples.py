"""Responses to a batch of prompts, with what the reward says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch, SampleBatch
from lit_rlhf.rewards import ask

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo_models import PPOModels


class ScoredSamples(NamedTuple):
    """Responses and their scores.

    Attributes:
        samples: `B` responses.
        scores: `[B]` float32 from the reward, before the missing-EOS rule.
        greedy_scores: `[B]` of the likeliest response to each row's prompt, behind that rule, or
            None where the advantages need none.
        details: what the reward says beside the scores: name -> `[B]`.
    """

    samples: SampleBatch
    scores: Tensor
    greedy_scores: Tensor | None = None
    details: Mapping[str, Tensor] = MappingProxyType({})


@torch.no_grad()
def draw_scored(module: PPOModels, batch: PromptBatch, *, seed: int) -> ScoredSamples:
    """Draw the responses of an iteration, and ask the reward about them; call it on all processes.

    Args:
        module: has policy, reward and settings.
        batch: prompts of this process; without one that counts, nothing of the result counts.
        seed: of this iteration.
    """
    samples = module.sample(
        batch, seed=seed, samples_per_prompt=module.advantage.samples_per_prompt
    )
    if not bool((batch.prompt_ids >= 0).any()):
        samples = samples.silenced()
    scores, details = ask("model.reward", module.reward, samples)
    drawn = ScoredSamples(samples, scores, details=details)
    return _with_greedy(module, batch, drawn) if module.advantage.requires_greedy else drawn


def _with_greedy(module: PPOModels, batch: PromptBatch, drawn: ScoredSamples) -> ScoredSamples:
    """Add the scores of greedy responses; without one of them, a response has no score."""
    greedy = dataclasses.replace(module.sampling, temperature=0.0)
    samples = module.sample(batch, seed=0, sampling=greedy)
    if not bool((batch.prompt_ids >= 0).any()):
        samples = samples.silenced()
    scores, _ = ask("model.reward", module.reward, samples)
    of_rows = module.missing_eos.apply(scores, samples.finished)[drawn.samples.group_ids]
    known = drawn.scores.masked_fill(torch.isnan(of_rows), torch.nan)
    return drawn._replace(scores=known, greedy_scores=of_rows.nan_to_num())
