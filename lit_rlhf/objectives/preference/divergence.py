"""f-divergences that hold a policy near its reference, as parts of the log-ratio losses.

A loss that regularises by the divergence `f` compares `f'(u)` of the two responses, where
`u = policy / reference` and `log u` is the log-ratio; constants cancel in the difference. Source:
Wang et al. 2023, "Beyond reverse KL", table 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_rlhf.ranges import require

# float32 ends at exp(88), and a loss may square the score. Beyond this it has no gradient.
_LARGEST_EXPONENT = 40.0


class Divergence(ABC):
    """How far the policy is from the reference."""

    @abstractmethod
    def score(self, log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return `f'(u)` up to a constant, which grows with the log-ratio; 0 at 0.

        Args:
            log_ratio: log-probability under the policy minus that under the reference.
        """


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """The divergence of the original losses: `score = log_ratio`."""

    def score(self, log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return the log-ratio."""
        return log_ratio


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """Covers all that the reference says: `score = 1 - exp(-log_ratio)`."""

    def score(self, log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return `1 - 1 / u`."""
        return 1.0 - _bounded_exp(-log_ratio)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Between the two: `score = log 2 + log sigmoid(log_ratio)`, never above `log 2`."""

    def score(self, log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return `log(2 u / (1 + u))`."""
        return math.log(2.0) + logsigmoid(log_ratio)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """From reverse (`alpha` near 0) to forward KL (near 1).

    `score = (1 - exp(-alpha * log_ratio)) / alpha`. TRL's `f_alpha_divergence_coef` is
    `1 - alpha`, so that its 0.5 is ours.

    Attributes:
        alpha: in (0, 1).

    Raises:
        ConfigError: if `alpha` is out of its range.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        require("model.loss.divergence.alpha", self.alpha, above=0, below=1)

    def score(self, log_ratio: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return `(1 - u^-alpha) / alpha`."""
        return (1.0 - _bounded_exp(-self.alpha * log_ratio)) / self.alpha


def _bounded_exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=_LARGEST_EXPONENT).exp()
