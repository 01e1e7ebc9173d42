"""VADER's rule-based sentiment as a reward: a judge that none of our models has a part in.

Source: C. J. Hutto and E. Gilbert, ICWSM 2014; the `vaderSentiment` package. It agrees with
people on the more positive of two movie texts in 66 % of all pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.extras import require_extra
from lit_rlhf.prompts import Prompt, Response, prompt_text, response_text
from lit_rlhf.rewards.source import RewardSource


@dataclass(frozen=True)
class VaderReward(RewardSource):
    """Score a continued text by VADER's compound score, -1 very negative to 1 very positive.

    Prompt and response are read as one text, since the prompt is its beginning.

    Attributes:
        instruction: the prompt's leading words that are not part of the text, left out.
    """

    instruction: str = "Movie review:"

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each text.

        Args:
            prompts: `B` texts; a chat is read as one.
            responses: `B` continuations.
            batch: not looked at.

        Returns:
            `[B]` float32 in [-1, 1]; a text without a word of the lexicon has 0.
        """
        scores = [
            _compound(prompt_text(prompt).removeprefix(self.instruction) + response_text(response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32)


vader_scores = VaderReward()  # callable as a plain function, for `lit-rlhf evaluate`


def _compound(text: str) -> float:
    return float(_analyzer().polarity_scores(text)["compound"])


@functools.cache
def _analyzer() -> Any:  # noqa: ANN401 - vaderSentiment has no types
    """Read the lexicon once a process, when it is first needed."""
    require_extra("demo", "VaderReward")
    from vaderSentiment.vaderSentiment import (  # noqa: PLC0415 - optional
        SentimentIntensityAnalyzer,
    )

    return SentimentIntensityAnalyzer()
