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
    from lit_rlhf.modules.rewarded_policy import RewardedPolicy


class ScoredSamples(NamedTuple):
    """Responses and their scores.

    Attributes:
        samples: `B` responses.
        scores: `[B]` float32 from the reward, before the rules for cut and overlong ones.
        greedy_scores: `[B]` of the likeliest response to each row's prompt, behind these rules, or
            None where the advantages need none.
        details: what the reward says beside the scores: name -> `[B]`.
    """

    samples: SampleBatch
    scores: Tensor
    greedy_scores: Tensor | None = None
    details: Mapping[str, Tensor] = MappingProxyType({})


@torch.no_grad()
def score_samples(
    module: RewardedPolicy, batch: PromptBatch, *, seed: int, is_greedy: bool = False
) -> ScoredSamples:
    """Draw responses, and ask the reward about them; call it on all processes.

    Args:
        module: has policy, reward and settings.
        batch: prompts of this process; without one that counts, nothing of the result counts.
        seed: of the samples.
        is_greedy: take the likeliest response to each prompt, in place of several samples.
    """
    if is_greedy:
        sampling = dataclasses.replace(module.sampling, temperature=0.0)
        samples = module.sample(batch, seed=seed, sampling=sampling)
    else:
        num_samples = module.samples_per_prompt
        samples = module.sample(batch, seed=seed, samples_per_prompt=num_samples)
    if not bool((batch.prompt_ids >= 0).any()):
        samples = samples.silenced()
    scores, details = ask("model.reward", module.reward, samples)
    return ScoredSamples(samples, scores, details=details)


def with_greedy(module: PPOModels, batch: PromptBatch, drawn: ScoredSamples) -> ScoredSamples:
    """Add the scores of greedy responses; without one of them, a response has no score.

    A greedy response that was cut keeps its score where the missing-EOS rule leaves samples out.
    """
    greedy = score_samples(module, batch, seed=0, is_greedy=True)
    ruled = module.ruled_scores(greedy.scores, greedy.samples)
    of_rows = torch.where(torch.isnan(ruled), greedy.scores, ruled)[drawn.samples.group_ids]
    known = drawn.scores.masked_fill(torch.isnan(of_rows), torch.nan)
    return drawn._replace(scores=known, greedy_scores=of_rows.nan_to_num())
