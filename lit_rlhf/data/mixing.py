"""A second source of data, beside the one that batches come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EndlessOrder:
    """Shuffled batches without end, each named by its number: there is no position to save.

    Attributes:
        num_examples: each comes once before any comes again.
        batch_size: examples in a batch, over all processes.
        seed: with the number of the pass, sets its order.
    """

    num_examples: int
    batch_size: int
    seed: int

    def batch(self, number: int) -> list[int]:
        """Return the examples of a batch, which may lie in two passes or more."""
        first = number * self.batch_size
        places = np.arange(first, first + self.batch_size)
        passes = places // self.num_examples
        orders = {one: self._order(one) for one in set(passes.tolist())}
        return [
            orders[one][place]
            for one, place in zip(passes.tolist(), places % self.num_examples, strict=True)
        ]

    def _order(self, number: int) -> list[int]:
        generator = np.random.default_rng((self.seed, number))
        order: list[int] = generator.permutation(self.num_examples).tolist()
        return order
