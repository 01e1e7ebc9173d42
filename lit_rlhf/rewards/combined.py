"""What rewards made of other rewards have in common: everything but how scores become one."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_rlhf.batches import SampleBatch
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.rewards.source import RewardSource, origins_of


class CombinedReward(RewardSource):
    """Several rewards as one. A subclass names them, and defines `score_in_detail` and `details`.

    It can do what all of its sources can, and hands states, weights and rest on to each.
    """

    @property
    @abc.abstractmethod
    def sources(self) -> Mapping[str, RewardSource]:
        """The rewards by name."""

    @property
    def origins(self) -> dict[str, str]:
        """The models of the sources, by the name of the source."""
        return origins_of(self.sources)

    @property
    def abstains(self) -> bool:
        """Where a source does: what it cannot score, the whole may not be able to."""
        return any(source.abstains for source in self.sources.values())

    @property
    def compares_samples(self) -> bool:
        """Where a source does."""
        return any(source.compares_samples for source in self.sources.values())

    @property
    def leaves_out_failures(self) -> bool:
        """Where every source does."""
        return all(source.leaves_out_failures for source in self.sources.values())

    @property
    def timeout_s(self) -> float | None:
        """The sum of the sources' limits; None where one has none."""
        limits = [source.timeout_s for source in self.sources.values()]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`."""
        return self.score_in_detail(prompts, responses, batch)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the sources that have one, by their name."""
        states = {name: source.state_dict() for name, source in self.sources.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the states back to the sources."""
        for name, own in state.items():
            self.sources[name].load_state_dict(own)

    def rest(self) -> None:
        """Let every source give a GPU's memory back."""
        for source in self.sources.values():
            source.rest()

    def share_trunk(self, policy: nn.Module) -> None:
        """Offer the policy's weights to every source."""
        for source in self.sources.values():
            source.share_trunk(policy)
