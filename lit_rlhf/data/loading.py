"""A loader whose order depends on the seed and the epoch alone, and that resumes exactly.

`batch_size` counts the examples of one optimizer step over all processes. Each such global batch
is dealt out to the processes, so that the examples of a step are the same on one process as on
eight, and the position in the data is the same number on all of them. Examples are read from the
disk's memory-mapped files as they are needed; there are no worker processes.

Facts about Lightning 2.6 that shaped this file: it calls `iter` on a loader before it loads its
state, and more than once, so `iter` alone must consume nothing; it stops after `len` batches
without exhausting the iterator, so code behind the last `yield` never runs; it warns when a run
is resumed inside an epoch unless the loader has `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from lit_rlhf.batches import cut_by_tokens
from lit_rlhf.data.tokenization import IntArray
from lit_rlhf.errors import CheckpointError, ConfigError

Example = TypeVar("Example")
Batch = TypeVar("Batch")
LastBatch = Literal["drop", "keep"]


@dataclass(frozen=True)
class Dealer(Generic[Example, Batch]):
    """Makes this process's share of a global batch, or a stand-in where there is none.

    Attributes:
        examples: all of them.
        collate: makes a batch of a list of examples.
        stand_in: turns an example into one in which nothing counts.
        rank: this process.
        world_size: number of processes.
    """

    examples: Sequence[Example]
    collate: Callable[[Sequence[Example]], Batch]
    stand_in: Callable[[Example], Example]
    rank: int = 0
    world_size: int = 1

    def __call__(self, batch: list[int]) -> Batch:
        """Make it of the examples at these places."""
        mine = [self.examples[i] for i in batch[self.rank :: self.world_size]]
        return self.collate(mine or [self.stand_in(self.examples[batch[0]])])


class TrainingLoader(Generic[Example, Batch]):
    """Shuffled global batches of equal size, dealt out to the processes; resumable.

    Each epoch has its own order. The examples that do not fill a batch are left out of the epoch
    (others in each), or they are a short batch of their own. Every process gets the same number of
    batches: one for which a short batch has no example gets a stand-in with nothing in it that
    counts. Where a Trainer stops an epoch early (`limit_train_batches`), the next one goes on from
    there, until all batches have been seen.
    """

    def __init__(
        self,
        deal: Dealer[Example, Batch],
        *,
        batch_size: int,
        seed: int,
        last_batch: LastBatch = "drop",
    ) -> None:
        """Set up the loader at the beginning of epoch 0.

        Args:
            deal: has the examples, equal on every process.
            batch_size: examples in a global batch, over all processes, whose number divides it.
            seed: with the epoch, sets the order.
            last_batch: "keep" makes a short batch of the examples that fill none, "drop" leaves
                them out.

        Raises:
            ConfigError: `batch_size` cannot be dealt out evenly, or no batch can be filled.
        """
        if batch_size % deal.world_size:
            raise ConfigError(
                f"batch_size={batch_size} cannot be dealt out evenly to {deal.world_size} "
                f"processes; make it a multiple of {deal.world_size}."
            )
        if len(deal.examples) < batch_size and last_batch == "drop":
            raise ConfigError(
                f"batch_size={batch_size} is more than the {len(deal.examples)} training examples "
                "(judged groups count as one): no batch can be filled. Make batch_size smaller, "
                "or set 'last_batch' to 'keep'."
            )
        self._deal = deal
        self._batch_size = batch_size
        self._seed = seed
        self._last_batch = last_batch
        self._epoch = 0
        self._position = 0  # batches of this epoch already handed out
        self._repeated: int | None = None

    def repeat_first(self, num_batches: int) -> None:
        """Let each epoch have the same first batches, in the same order, and no others."""
        self._repeated = num_batches

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        num_used = self.num_examples - self.num_left_out
        return math.ceil(num_used / self._batch_size)

    @property
    def num_left_out(self) -> int:
        """Examples that an epoch does without, as they fill no batch."""
        return 0 if self._last_batch == "keep" else self.num_examples % self._batch_size

    @property
    def smallest_batch(self) -> int:
        """Examples in the smallest global batch of an epoch."""
        num_left = self.num_examples % self._batch_size
        return num_left if self._last_batch == "keep" and num_left else self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Go on from the current position; at the end of an epoch, begin the next."""
        if self._position >= (self._repeated or len(self)):
            self._epoch += 1
            self._position = 0
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        order = self.epoch_order(0 if self._repeated else self._epoch)[: self._repeated]
        while self._position < len(order):
            batch = order[self._position]
            self._position += 1  # first: a checkpoint written during this batch counts it as done
            yield self._deal(batch)

    def epoch_order(self, epoch: int) -> list[list[int]]:
        """Return the global batches of an epoch, as indices into the examples."""
        # A pair of seed and epoch names its own stream: seed 1 does not repeat seed 0 an epoch on.
        generator = np.random.default_rng((self._seed, epoch))
        num_used = self.num_examples - self.num_left_out
        order = generator.permutation(self.num_examples).tolist()[:num_used]
        return _chunks(order, self._batch_size)

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(self._deal.examples)

    def batch_of(self, indices: Sequence[int]) -> Batch:
        """Make a batch of some examples, whatever their order; the position stays where it is."""
        return self._deal.collate([self._deal.examples[index] for index in indices])

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what gives it its meaning, as plain numbers."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; the number of processes may have changed.

        Raises:
            CheckpointError: the position was saved for other data, batches or order.
        """
        for name, value in self._identity().items():
            saved = state[name]
            if saved != value:
                raise CheckpointError(
                    f"The checkpoint's position in the training data was saved with {name}="
                    f"{saved}, but {name} is {value} now, so the run cannot go on exactly. "
                    "Restore the former setting, or start again without --ckpt_path."
                )
        self._epoch = state["epoch"]
        self._position = state["position"]

    def _identity(self) -> dict[str, int]:
        return {
            "num_examples": self.num_examples,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "keeps_last_batch": int(self._last_batch == "keep"),
        }


class EvaluationLoader(Generic[Example, Batch]):
    """All examples in their order, each exactly once over all processes.

    Every process gets the same number of batches. One that has no example left in the last,
    short batch gets a stand-in with nothing in it that counts.
    """

    def __init__(
        self,
        deal: Dealer[Example, Batch],
        *,
        batch_size: int,
        batch_tokens: int | None = None,
        lengths: Sequence[int] | IntArray = (),
    ) -> None:
        """Set up the loader.

        Args:
            deal: has the examples, equal on every process.
            batch_size: examples in a global batch, over all processes.
            batch_tokens: a batch ends earlier where a process's share of its examples, times the
                longest row of the batch, would be more.
            lengths: of the examples' longest rows, needed by `batch_tokens`.
        """
        places = list(range(len(deal.examples)))
        if batch_tokens is None:
            self._batches = _chunks(places, batch_size)
        else:
            parts = cut_by_tokens(list(lengths), batch_size, batch_tokens * deal.world_size)
            self._batches = [places[part] for part in parts]
        self._deal = deal

    def __len__(self) -> int:
        """Return the batches of a pass."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Begin a new pass, however much of the last one was read."""
        return map(self._deal, self._batches)


def endless_batch(number: int, *, num_examples: int, batch_size: int, seed: int) -> list[int]:
    """Return the examples of a batch out of shuffled ones without end: no position is to be saved.

    Args:
        number: of the batch, which may lie in two passes or more.
        num_examples: each comes once before any comes again.
        batch_size: examples in a batch, over all processes.
        seed: with the number of the pass, sets its order.
    """
    first = number * batch_size
    passes, places = np.divmod(np.arange(first, first + batch_size), num_examples)
    orders = {
        one: np.random.default_rng((seed, one)).permutation(num_examples)
        for one in set(passes.tolist())
    }
    pairs = zip(passes.tolist(), places.tolist(), strict=True)
    return [int(orders[one][place]) for one, place in pairs]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
