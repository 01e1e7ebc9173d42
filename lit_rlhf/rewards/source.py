"""What every reward is: a callable from prompts and responses to one score each."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lit_rlhf.batches import SampleBatch
from lit_rlhf.prompts import Prompt, Response


class RewardSource(abc.ABC):
    """Scores responses. Subclass it, or wrap a plain function in `FunctionReward`."""

    @abc.abstractmethod
    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response.

        Args:
            prompts: `B` prompts as the records have them: text, or chat messages.
            responses: `B` texts, without special tokens; of a record whose response calls tools,
                in `lit-rlhf evaluate rewards`, its messages.
            batch: the same samples as tokens, with lengths, masks and the records' fields. None
                where there are texts alone: in `lit-rlhf evaluate` and `lit-rlhf chat`.

        Returns:
            `[B]` float32, one score a response; higher is better.
        """

    @property
    def origins(self) -> dict[str, str]:
        """The models that the score comes from: role -> hub name or folder.

        They are listed in the lineage of what you train with the source; "" is the role of an
        only one. A source without a model keeps this property.
        """
        return {}

    @property
    def details(self) -> tuple[str, ...]:
        """Names of what `score_in_detail` returns beside the score; none by default."""
        return ()

    def score_in_detail(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score each response and say more about it, such as how sure the score is.

        Args:
            prompts: as for a call.
            responses: likewise.
            batch: likewise.

        Returns:
            The scores `[B]`, and for each of `details` `[B]` float32.
        """
        return self(prompts, responses, batch), {}

    def share_trunk(self, policy: nn.Module) -> None:  # noqa: B027 - nothing is a fine answer
        """Be offered the weights of a policy that trains by adapters, before the first call.

        A source on the same frozen weights need not hold a copy of them; others ignore the offer.
        """


def origins_of(sources: Mapping[str, RewardSource]) -> dict[str, str]:
    """Return the models behind several rewards: `NAME`, or `NAME.ROLE`, -> where it comes from."""
    return {
        f"{name}.{role}" if role else name: origin
        for name, source in sources.items()
        for role, origin in source.origins.items()
    }
