"""Any Python function as a reward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.rewards.source import RewardSource

RewardFunction = Callable[[Sequence[Prompt], Sequence[Response]], Iterable[float]]


@dataclass(frozen=True)
class FunctionReward(RewardSource):
    """Score responses by a function `(prompts, responses) -> list of numbers`.

    The function gets each prompt as its record has it: text, or a chat as a sequence of messages.

    Attributes:
        function: its dotted path, as in `my_package.my_module.my_function`.
    """

    function: str

    def __post_init__(self) -> None:
        """Look the function up at once, so that a misspelt path stops before training."""
        self.resolve()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`.

        Raises:
            ConfigError: the function did not return one number for each response.
        """
        returned = self.resolve()(prompts, responses)
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"reward function {self.function} returned {returned!r:.80}; it must return one "
                "number for each response"
            ) from error
        if len(scores) != len(responses):
            raise ConfigError(
                f"reward function {self.function} returned {len(scores)} scores "
                f"for {len(responses)} responses"
            )
        device = None if batch is None else batch.rows.lengths.device
        return torch.tensor(scores, dtype=torch.float32, device=device)

    def resolve(self) -> RewardFunction:
        """Return the function itself.

        Raises:
            ConfigError: it cannot be imported, or is not a function.
        """
        module_name, _, name = self.function.rpartition(".")
        try:
            function: RewardFunction = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"reward function '{self.function}' cannot be imported ({error}); "
                "give a dotted path such as my_package.my_module.my_function"
            ) from error
        if not callable(function):
            raise ConfigError(
                f"reward function '{self.function}' is not a function but a "
                f"{type(function).__name__}; give a dotted path such as "
                "my_package.my_module.my_function"
            )
        return function
