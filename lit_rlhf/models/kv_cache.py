"""Keys and values of the sequences being decoded, in memory that is laid out once.

A cache that grows is copied at every token. Here each layer has one buffer, `rows` by `columns`,
and the sequences are right-aligned in it: the newest token of every row is in the same column,
`end - 1`. A step writes one column; a row that ends gives its place to the last one; a new row's
prompt is copied in so that it ends where the others do. A right-aligned row keeps the distances
between its tokens, so that transformers' own masks, sliding windows too, hold as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lit_rlhf.models.devices import waits_for_gpu
from lit_rlhf.objectives.precision import product_dtype


class FixedStep(NamedTuple):
    """A step of one token whose shape stays the same while the rows grow, see `RowCache.fixed`.

    Attributes:
        num_rows: rows computed: the first ones, whether in use or not.
        first: columns read, from this one,
        stop: to the one before this.
        column: `[1]` int64, the column written, between the two.
    """

    num_rows: int
    first: int
    stop: int
    column: Tensor


@dataclass
class _Window:
    """What all layers share: the buffer's size and the part of it that is in use."""

    num_rows: int
    num_columns: int
    size: int  # rows in use: the first ones
    first: int = 0  # no row in use has anything left of this column
    end: int = 0  # one behind the newest column
    fixed: FixedStep | None = None  # while a step of this shape is computed


class _RowLayer(CacheLayerMixin):
    """The buffers of one layer, `[rows, heads, columns, D]`, made at the first token."""

    is_sliding = False

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.window = window
        self.keys: Tensor
        self.values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers of zeros: 0 * NaN is NaN, so masked places must not hold NaN."""
        self.keys, self.values = (self._buffer(states) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # whatever else transformers hands to a cache
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write `[b, heads, S, D]` behind what is there; return all in use, as products read it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        if window.fixed is not None:
            return self._update_fixed(key_states, value_states, window.fixed)
        end = window.end + key_states.shape[2]
        self.keys[: window.size, :, window.end : end] = key_states
        self.values[: window.size, :, window.end : end] = value_states
        used = (slice(window.size), slice(None), slice(window.first, end))
        keys, values = self.keys[used], self.values[used]
        return keys.to(product_dtype(key_states)), values.to(product_dtype(value_states))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and the offset of what a query sees."""
        if (fixed := self.window.fixed) is not None:
            return fixed.stop - fixed.first, 0
        return self.window.end - self.window.first + query_length, 0

    def get_seq_length(self) -> int | Tensor:  # type: ignore[override]  # as in transformers' StaticLayer
        """Return the columns in use."""
        if (fixed := self.window.fixed) is not None:
            return fixed.column - fixed.first
        return self.window.end - self.window.first

    def get_max_length(self) -> int:
        """Return the columns that there are."""
        return self.window.num_columns

    def _update_fixed(
        self, key_states: Tensor, value_states: Tensor, step: FixedStep
    ) -> tuple[Tensor, Tensor]:
        read = (slice(step.num_rows), slice(None), slice(step.first, step.stop))
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[: step.num_rows].index_copy_(2, step.column, states.to(buffer.dtype))
        dtypes = product_dtype(key_states), product_dtype(value_states)
        return self.keys[read].to(dtypes[0]), self.values[read].to(dtypes[1])

    def _buffer(self, states: Tensor) -> Tensor:
        shape = (self.window.num_rows, states.shape[1], self.window.num_columns, states.shape[3])
        # Rotation leaves float32 keys under autocast, which would be cast again at every step.
        dtype = product_dtype(states)
        if states.device.type != "cpu":
            return states.new_zeros(shape, dtype=dtype)
        # NumPy's zeros take no memory before they are written to, unlike torch's: rows that end
        # early never reach their last columns.
        num_bytes = math.prod(shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)


class RowCache(Cache):
    """A key-value cache whose rows come and go.

    Args:
        num_rows: sequences that it can hold.
        num_columns: tokens of each.
        size: rows in use at the beginning.
    """

    def __init__(self, num_rows: int, num_columns: int, *, size: int = 0) -> None:
        self.window = _Window(num_rows, num_columns, size)
        super().__init__(layer_class_to_replicate=functools.partial(_RowLayer, self.window))  # type: ignore[arg-type]  # called without arguments, like a class

    @property
    def size(self) -> int:
        """Rows in use."""
        return self.window.size

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._row_layers)

    def advance(self, num_columns: int) -> None:
        """Count the columns in that every layer has just written."""
        self.window.end += num_columns

    @contextmanager
    def fixed(self, step: FixedStep) -> Iterator[None]:
        """Let a forward compute a step whose shape stays the same, as a CUDA graph needs it.

        It computes rows that are not in use, too. They write where nothing is read, and read their
        own new column at least, so that they stay numbers.

        Args:
            step: the shape, and the column to write.
        """
        self.window.fixed = step
        try:
            yield
        finally:
            self.window.fixed = None

    def readable(self, lengths: Tensor) -> Tensor:
        """Tell which columns belong to each row, that of the next token among them.

        Args:
            lengths: `[b]` cached tokens of the rows in use.

        Returns:
            `[b, columns in use + 1]` bool; inside of `fixed` all columns that are read.
        """
        window = self.window
        if (step := window.fixed) is not None:
            columns = torch.arange(step.first, step.stop, device=lengths.device)
            return (columns >= step.column - lengths[:, None]) & (columns <= step.column)
        columns = torch.arange(window.first, window.end + 1, device=lengths.device)
        return columns >= (window.end - lengths)[:, None]

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drop every row but these: the last ones move into the places that become free.

        Args:
            places: ascending.

        Returns:
            Which row is in each place now.
        """
        size = len(places)
        order = list(range(size))
        free = sorted(set(order).difference(places))
        moving = [place for place in places if place >= size]
        for place, row in zip(free, moving, strict=True):
            order[place] = row
        if free:
            self._move(moving, free)
        self.window.size = size
        return order

    def _move(self, rows: list[int], places: list[int]) -> None:
        """Copy rows to other places."""
        buffers = [one for layer in self._row_layers for one in (layer.keys, layer.values)]
        device = buffers[0].device
        if waits_for_gpu(device):
            # Whole rows: one launch copies many tensors where none has gaps.
            from_rows = [buffer[row] for buffer in buffers for row in rows]
            torch._foreach_copy_([buffer[to] for buffer in buffers for to in places], from_rows)
            return
        used = slice(self.window.first, self.window.end)
        to, moving = (torch.tensor(numbers, device=device) for numbers in (places, rows))
        for buffer in buffers:
            buffer[to, :, used] = buffer[moving, :, used]

    def admit(self, prompts: RowCache, rows: Tensor) -> None:
        """Copy rows of a cache that holds prompts behind the rows in use.

        Args:
            prompts: right-aligned like this one; where rows are in use, of no more columns than
                those have behind them.
            rows: `[m]` int64, which of its rows; one may be named again and again.
        """
        window, source = self.window, prompts.window
        width = source.end - source.first
        if window.size == 0:
            window.first, window.end = 0, width
        start = window.end - width
        window.first = min(window.first, start)
        places = slice(window.size, window.size + len(rows))
        for index, layer in enumerate(prompts._row_layers):
            if len(self.layers) <= index:
                self.layers.append(_RowLayer(window))
            own = self.layers[index]
            assert isinstance(own, _RowLayer)
            if not own.is_initialized:
                own.lazy_initialization(layer.keys, layer.values)
            for buffer, other in ((own.keys, layer.keys), (own.values, layer.values)):
                buffer[places, :, start : window.end] = other[rows, :, source.first : source.end]
        window.size += len(rows)

    def make_room(self, longest: int) -> None:
        """Move all rows to the left, when the columns are used up.

        Args:
            longest: tokens of the longest row in use, or still to be admitted.
        """
        window = self.window
        if window.end < window.num_columns:
            return
        used = slice(window.end - longest, window.end)
        for layer in self._row_layers:
            for buffer in (layer.keys, layer.values):
                buffer[: window.size, :, :longest] = buffer[: window.size, :, used].clone()
        window.first, window.end = 0, longest

    def forget_before(self, longest: int) -> None:
        """Leave columns out that no row has anything in.

        Args:
            longest: tokens of the longest row in use.
        """
        self.window.first = self.window.end - longest

    @property
    def _row_layers(self) -> list[_RowLayer]:
        return [layer for layer in self.layers if isinstance(layer, _RowLayer)]
