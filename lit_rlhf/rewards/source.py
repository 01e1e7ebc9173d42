"""What every reward is: a callable from prompts and responses to one score each."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor

from lit_rlhf.batches import SampleBatch


class RewardSource(abc.ABC):
    """Scores responses. Subclass it, or wrap a plain function in `FunctionReward`."""

    @abc.abstractmethod
    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], batch: SampleBatch
    ) -> Tensor:
        """Score each response.

        Args:
            prompts: `B` texts, as rendered for the policy.
            responses: `B` texts, without special tokens.
            batch: the same samples as tokens, with lengths, masks and the records' fields.

        Returns:
            `[B]` float32, one score a response; higher is better.
        """
