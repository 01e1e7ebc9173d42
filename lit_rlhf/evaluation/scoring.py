"""Asking a reward about texts alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.bootstrap import Floats
from lit_rlhf.evaluation.responses import SourcedPrompt
from lit_rlhf.prompts import Response
from lit_rlhf.rewards import LearnedReward, RewardSource
from lit_rlhf.rewards.watch import watched


def score_texts(
    name: str, reward: RewardSource, prompts: Sequence[SourcedPrompt], texts: Sequence[Response]
) -> Floats:
    """Return `[n]` scores of `n` responses to `n` prompts; a reward model is held only meanwhile.

    Args:
        name: of the judge, for errors.
        reward: what scores.
        prompts: `n` prompts.
        texts: `n` responses.

    Raises:
        ConfigError: not every score is a finite number.
    """
    with watched(f"judge {name}", reward.timeout_s):
        given = reward([prompt for prompt, _ in prompts], texts)
    scores: Floats = given.double().cpu().numpy()
    if isinstance(reward, LearnedReward):
        reward.unload()
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ConfigError(
            f"judge {name}: returned {scores.size} scores for {len(texts)} responses, or one that "
            "is no finite number"
        )
    return scores
