"""What a policy loss reads and returns, and what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape

# Keeps exp() finite in float32 for a token that one policy all but forbids; far outside any
# clip range. The bound of OpenRLHF and verl.
_MAX_LOG_RATIO = 20.0


class PolicyTokens(NamedTuple):
    """The tokens of some responses, under the policy as it is and as it was.

    Attributes:
        logprobs: `[B, T]` under the policy that is trained.
        old_logprobs: `[B, T]` under the policy that sampled.
        advantages: `[B, T]`, constants.
        response_mask: `[B, T]` bool, True at response tokens.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    response_mask: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """How much likelier each token is than it was: `[B, T]`."""
        return self.logprobs - self.old_logprobs


class ClippedLoss(NamedTuple):
    """A loss for each element, and where the clipping took effect.

    Attributes:
        losses: float32 (float64 for float64), to be minimised.
        is_clipped: bool, True where the clipped branch is the larger one.
    """

    losses: Tensor
    is_clipped: Tensor


class PolicyLoss(ABC):
    """Raises the likelihood of tokens with an advantage, as far as the old policy is a guide.

    One of your own defines `compare`; see docs/guides/add-a-loss.md.
    """

    @abstractmethod
    def compare(self, tokens: PolicyTokens) -> ClippedLoss:
        """Compute the loss of each token `[B, T]`, in float32; masked ones do not matter."""

    def __call__(self, tokens: PolicyTokens) -> ClippedLoss:
        """Check the tokens, and compute the loss of each.

        Args:
            tokens: of `B` responses.

        Returns:
            Losses and clip marks. Values at padding are to be masked out.

        Raises:
            ValueError: if the shapes differ.
        """
        require_same_shape(**tokens._asdict())
        logprobs, old_logprobs, advantages, mask = tokens
        return self.compare(
            PolicyTokens(
                at_least_float32(logprobs),
                at_least_float32(old_logprobs),
                at_least_float32(advantages),
                mask,
            )
        )


def bounded_exp(log_ratios: Tensor) -> Tensor:
    """Return ratios, their exponents cut to [-20, 20]."""
    return log_ratios.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def clipped(ratios: Tensor, advantages: Tensor, low: float, high: float) -> ClippedLoss:
    """Return the clipped surrogate `max(-A * ratio, -A * clip(ratio, 1 - low, 1 + high))`."""
    plain = -advantages * ratios
    near_one = -advantages * ratios.clamp(1.0 - low, 1.0 + high)
    return ClippedLoss(plain.maximum(near_one), near_one > plain)
