"""What every reward is: a callable from prompts and responses to one score each."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
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
    def abstains(self) -> bool:
        """Whether a score of NaN means "cannot be scored", and not that something is broken.

        PPO leaves such a response out of baseline and loss, and logs how many there are. By
        default False: a NaN then skips the whole step.
        """
        return False

    @property
    def compares_samples(self) -> bool:
        """Whether a score depends on the other samples of the same prompt; by default False.

        A call has all samples of its prompts, which `batch.group_ids` tells apart. PPO refuses such
        a source where it draws one response a prompt.
        """
        return False

    @property
    def leaves_out_failures(self) -> bool:
        """Whether a call that takes too long makes NaN of its responses.

        By default False: it ends the run.
        """
        return False

    @property
    def timeout_s(self) -> float | None:
        """Seconds that a call may take before the run ends with an error; None for no limit."""
        return None

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

    def state_dict(self) -> dict[str, Any]:
        """Return what later scores depend on, in plain types and tensors: it is in checkpoints.

        Nothing by default. A source that counts or learns returns it here, and takes it back by
        `load_state_dict`; else a resumed run is another one.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - likewise
        """Go on from a saved state; called where `state_dict` had something."""

    def rest(self) -> None:  # noqa: B027 - nothing is a fine answer
        """Give a GPU's memory back until the next call; judges do after each."""

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


def group_ids_of(prompts: Sequence[Prompt], batch: SampleBatch | None) -> Tensor:
    """Return `[B]` int64, equal for samples of the same prompt.

    Of texts alone, neighbours with equal prompts are samples of the same one.
    """
    if batch is not None:
        return batch.group_ids
    sizes = [len(list(equal)) for _, equal in groupby(prompts)]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))


def rows_by_prompt(prompts: Sequence[Prompt], batch: SampleBatch | None) -> list[list[int]]:
    """Return the rows of each prompt's samples, in the order of the prompts."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids_of(prompts, batch).tolist()):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
