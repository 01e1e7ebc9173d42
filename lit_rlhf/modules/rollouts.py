"""The responses of an iteration: drawn, scored, and with what its settings add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_rlhf.batches import PromptBatch
from lit_rlhf.modules.refilling import refill
from lit_rlhf.modules.scored_samples import ScoredSamples, score_samples, with_greedy

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo_models import PPOModels


def roll_out(module: PPOModels, batch: PromptBatch, *, seed: int) -> ScoredSamples:
    """Draw and score responses; refill groups, or add greedy responses, where the settings say so.

    Args:
        module: has policy, reward and settings.
        batch: prompts of this process.
        seed: of this iteration.
    """
    drawn = score_samples(module, batch, seed=seed)
    if module.max_refills:
        drawn = refill(module, drawn, counts=batch.prompt_ids >= 0, seed=seed)
    if module.advantage.requires_greedy:
        drawn = with_greedy(module, batch, drawn)
    return drawn
