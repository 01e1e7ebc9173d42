"""Dynamic sampling: groups whose responses all score alike give way to other prompts.

Their advantages would be zero. Source: Yu et al. 2025 (DAPO), section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch, SampleBatch, TokenRows
from lit_rlhf.data.loading import TrainingLoader
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.rewarded_policy import ScoredSamples
from lit_rlhf.ranks import sum_over_ranks

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo import PPOModule

_SMALLEST_SPREAD = 1e-8  # of scores that are not alike, as in TRL
_SEED_STEP = 2**32  # between the rounds of an iteration: far above any number of iterations


def refill(module: PPOModule, drawn: ScoredSamples, *, counts: Tensor, seed: int) -> ScoredSamples:
    """Draw groups anew from other prompts, at most `module.max_refills` times.

    Which prompts come follows from the seed, whatever the number of processes; call it on all of
    them.

    Args:
        module: has policy, reward and settings.
        drawn: responses of this process, groups of `k` together.
        counts: `[G]` bool, False at stand-ins.
        seed: of this iteration.

    Raises:
        ConfigError: the training data are not those of `PPODataModule`.
    """
    loader = module.trainer.train_dataloader
    if not isinstance(loader, TrainingLoader):
        raise ConfigError("model.max_refills draws other prompts from the data of PPODataModule")
    world_size, num_refilled = module.trainer.world_size, 0
    num_groups = int(sum_over_ranks(counts.sum()))
    for number in range(1, module.max_refills + 1):
        alike = are_alike(module, drawn) & counts  # [G]
        num_alike = int(sum_over_ranks(alike.sum()))
        if num_alike == 0:
            break
        others = _other_prompts(loader.num_examples, num_groups, (seed, number))
        mine = [others[group * world_size + module.global_rank] for group in _places(alike)]
        # A process without such a group computes along, with a prompt that does not count.
        batch: PromptBatch = loader.batch_of(mine or others[:1]).to(module.device)
        if not mine:
            batch = batch._replace(prompt_ids=torch.full_like(batch.prompt_ids, -1))
        fresh = module.score_samples(batch, seed=seed + number * _SEED_STEP)
        if mine:
            drawn = _replace_groups(drawn, fresh, alike)
        num_refilled += num_alike
    num_alike = int(sum_over_ranks((are_alike(module, drawn) & counts).sum()))
    module.log("train/ppo/refilled_groups", float(num_refilled))
    module.log("train/ppo/alike_groups", num_alike / max(1, num_groups))
    return drawn


def are_alike(module: PPOModule, drawn: ScoredSamples) -> Tensor:
    """Tell of which groups all responses score alike, behind the missing-EOS rule: `[G]` bool.

    The penalty for length is left aside, as in the source (eq. 11): responses that are all wrong
    are alike, however long each is.
    """
    scores = module.missing_eos.apply(drawn.scores, drawn.samples.finished)
    scores = scores.view(-1, module.advantage.samples_per_prompt)  # [G, k]
    is_scored = ~torch.isnan(scores)
    highest = scores.masked_fill(~is_scored, -torch.inf).amax(1)
    lowest = scores.masked_fill(~is_scored, torch.inf).amin(1)
    return ~(highest - lowest > _SMALLEST_SPREAD)  # of a group without scores as well


def _other_prompts(num_examples: int, num_groups: int, key: tuple[int, int]) -> list[int]:
    """Draw as many prompts as there are groups, different ones if there are enough."""
    generator = np.random.default_rng(key)
    is_short = num_examples < num_groups
    drawn: list[int] = generator.choice(num_examples, size=num_groups, replace=is_short).tolist()
    return drawn


def _places(marks: Tensor) -> list[int]:
    places: list[int] = marks.nonzero().squeeze(-1).tolist()
    return places


def _replace_groups(drawn: ScoredSamples, fresh: ScoredSamples, alike: Tensor) -> ScoredSamples:
    """Put the fresh groups into the places of those that are alike."""
    k = len(drawn.scores) // len(alike)
    rows = alike.repeat_interleave(k).nonzero().squeeze(-1)  # [b]
    names = drawn.details.keys() & fresh.details.keys()
    return ScoredSamples(
        _replace_rows(drawn.samples, fresh.samples, rows),
        drawn.scores.index_copy(0, rows, fresh.scores),
        details={
            name: drawn.details[name].index_copy(0, rows, fresh.details[name]) for name in names
        },
    )


def _replace_rows(old: SampleBatch, new: SampleBatch, rows: Tensor) -> SampleBatch:
    """Return the samples with those of `rows` `[b]` replaced, padded to the longer of the two."""

    def put(first: Tensor, second: Tensor) -> Tensor:
        if first.dim() == 1:
            return first.index_copy(0, rows, second)
        width = max(first.shape[1], second.shape[1])
        first, second = (
            torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (first, second)
        )
        return first.index_copy(0, rows, second)

    texts = {name: list(getattr(old, name)) for name in ("prompts", "responses", "fields")}
    for number, row in enumerate(rows.tolist()):
        for name, values in texts.items():
            values[row] = getattr(new, name)[number]
    return SampleBatch(
        rows=TokenRows(*map(put, old.rows, new.rows)),
        prompt_lengths=put(old.prompt_lengths, new.prompt_lengths),
        response_mask=put(old.response_mask, new.response_mask),
        sampler_logprobs=put(old.sampler_logprobs, new.sampler_logprobs),
        finished=put(old.finished, new.finished),
        group_ids=old.group_ids,
        **texts,
    )
