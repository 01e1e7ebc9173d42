"""What a response costs that comes near the length limit."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.precision import at_least_float32
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class OverlongPenalty:
    """Take the more off a response's score, the nearer it comes to the length limit.

    With `max_length` the most tokens of a response (`model.sampling.max_new_tokens`):

    `scores = scores - weight * clip((lengths - (max_length - buffer)) / buffer, 0, 1)`

    Source: Yu et al. 2025 (DAPO), eq. 13, "soft overlong punishment".

    Peers: TRL's `get_soft_overlong_punishment` and OpenRLHF, the same.

    Attributes:
        buffer: tokens before the limit in which it rises, >= 1; DAPO has 4,096 of 20,480.
        weight: what a response at the limit costs, > 0.

    Raises:
        ConfigError: if a value is out of its range.
    """

    buffer: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        require("model.overlong_penalty.buffer", self.buffer, least=1)
        require("model.overlong_penalty.weight", self.weight, above=0)

    def check(self, max_length: int) -> None:
        """Refuse a buffer that is longer than the longest response.

        Raises:
            ConfigError: it is.
        """
        if self.buffer > max_length:
            raise ConfigError(
                f"model.overlong_penalty.buffer is {self.buffer}, more than "
                f"model.sampling.max_new_tokens {max_length}: no response would be short enough"
            )

    def apply(
        self, scores: Float[Tensor, " B"], lengths: Int[Tensor, " B"], max_length: int
    ) -> Float[Tensor, " B"]:
        """Return the scores with the penalty taken off.

        Args:
            scores: one a response.
            lengths: tokens of each response.
            max_length: the most that a response may have.
        """
        scores = at_least_float32(scores)
        excess = (lengths - (max_length - self.buffer)).to(scores.dtype) / self.buffer
        return scores - self.weight * excess.clamp(min=0.0, max=1.0)
