"""How the weight of the KL penalty changes while the policy trains."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from lit_rlhf.ranges import require


class KLState(NamedTuple):
    """All that a controller remembers, small enough to be in every checkpoint.

    A controller that remembers more has a NamedTuple of its own, with further fields of plain
    values behind these two.

    Attributes:
        coefficient: the current weight of the KL penalty.
        num_updates: updates so far.
    """

    coefficient: float
    num_updates: int


class KLController(ABC):
    """Gives the weight of the KL penalty; state in, state out, nothing kept inside."""

    @abstractmethod
    def initial_state(self) -> KLState:
        """Return the state before the first update."""

    @abstractmethod
    def update(self, state: KLState, kl: float, num_episodes: int) -> KLState:
        """Return the state after a batch of rollouts has been trained on.

        Args:
            state: the state before.
            kl: nats a response (sum over tokens), averaged over the batch and all ranks.
            num_episodes: responses in the batch, over all ranks.

        Returns:
            The state for the next batch.

        Raises:
            ValueError: if `kl` is NaN or `num_episodes` is negative.
        """


@dataclass(frozen=True)
class FixedKL(KLController):
    """Keeps the weight of the KL penalty as it is.

    Attributes:
        coefficient: >= 0; 0.05 is the value of the summarize-from-feedback reproduction.

    Raises:
        ConfigError: if `coefficient` is negative or not finite.
    """

    coefficient: float = 0.05

    def __post_init__(self) -> None:
        require("kl.coefficient", self.coefficient, least=0)

    def initial_state(self) -> KLState:
        """Return the fixed coefficient with no updates."""
        return KLState(self.coefficient, 0)

    def update(self, state: KLState, kl: float, num_episodes: int) -> KLState:
        """Count the update and keep the coefficient, see `KLController.update`."""
        _check_measurement(kl, num_episodes)
        return KLState(state.coefficient, state.num_updates + 1)


@dataclass(frozen=True)
class AdaptiveKL(KLController):
    """Steers the KL of a response towards a target by a proportional controller in log space.

    `error = clip(kl / target - 1, -max_error, max_error)`
    `coefficient <- coefficient * (1 + error * num_episodes / horizon)`
    Source: Ziegler et al. 2019, section 2.2, with the defaults of OpenAI's code. The factor
    is kept above `1 - max_error`; that matters only for batches larger than `horizon`,
    where the formula could turn the penalty into a bonus.

    Attributes:
        initial: the first coefficient, > 0.
        target: nats a response, > 0.
        horizon: episodes over which a full error changes the coefficient by its own size, > 0.
        max_error: bound of the relative error, in (0, 1).

    Raises:
        ConfigError: if a value is out of its range.
    """

    initial: float = 0.15
    target: float = 6.0
    horizon: float = 10000.0
    max_error: float = 0.2

    def __post_init__(self) -> None:
        require("kl.coefficient", self.initial, above=0)
        require("kl.target", self.target, above=0)
        require("kl.horizon", self.horizon, above=0)
        require("kl.controller.max_error", self.max_error, above=0, below=1)

    def initial_state(self) -> KLState:
        """Return the initial coefficient with no updates."""
        return KLState(self.initial, 0)

    def update(self, state: KLState, kl: float, num_episodes: int) -> KLState:
        """Raise the coefficient if the KL is above target, else lower it; never to zero.

        Args:
            state: the state before.
            kl: nats a response (sum over tokens), averaged over the batch and all ranks.
            num_episodes: responses in the batch, over all ranks.

        Returns:
            The state for the next batch.

        Raises:
            ValueError: if `kl` is NaN or `num_episodes` is negative.
        """
        _check_measurement(kl, num_episodes)
        error = min(max(kl / self.target - 1.0, -self.max_error), self.max_error)
        factor = max(1.0 + error * num_episodes / self.horizon, 1.0 - self.max_error)
        # Tens of thousands of batches below target would otherwise underflow to an
        # absorbing zero.
        coefficient = max(state.coefficient * factor, sys.float_info.min)
        return KLState(coefficient, state.num_updates + 1)


def _check_measurement(kl: float, num_episodes: int) -> None:
    if math.isnan(kl):
        raise ValueError(
            "the measured KL is NaN: the log-probabilities of policy or reference are not "
            "finite; look at the last batch before changing the KL coefficient"
        )
    if num_episodes < 0:
        raise ValueError(f"num_episodes is {num_episodes}; expected a count >= 0")
