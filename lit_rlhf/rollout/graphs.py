"""Steps of decoding as CUDA graphs: one launch instead of the thousand and more of a forward.

A graph repeats what was launched while it was recorded, on the same memory. So its step has a fixed
shape: rows and columns are rounded up to one of a few, and what it reads lies in tensors that stay
where they are. The last rows may be none of ours; they are computed and left out.

Graphs live as long as one run of decoding. They hold the addresses of its cache and of the weights
that autocast has cast for it, which a training step needs the memory of and changes.

A graph is compared with the plain step before it is used. Where it cannot be recorded or says
something else, decoding goes on plainly, and the log says why.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lit_rlhf.models.kv_cache import FixedStep, RowCache
from lit_rlhf.models.policy import PolicyModel

_log = logging.getLogger(__name__)

# Records what a function launches; returns what launches the same again.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]

_COLUMNS = 256  # the columns read begin and end at multiples of these
_LEAST_ROWS = 8
# Recording takes about as long as this many plain steps, so a shape pays for it by then at worst.
_STEPS_BEFORE_RECORDING = 4
# Mean difference of a row's logits, by their mean distance from their mean. Other kernels for other
# shapes round bf16 to some 0.01; a graph that reads the wrong memory is off by 1.
_TOLERANCE = 0.1

_without_graphs: weakref.WeakSet[PolicyModel] = weakref.WeakSet()


class Shape(NamedTuple):
    """What one graph computes.

    Attributes:
        num_rows: in use and not.
        first: the first column read.
        stop: the one behind the last.
    """

    num_rows: int
    first: int
    stop: int


class Steps:
    """Computes the logits that follow the newest token of each row.

    Args:
        policy: the model that speaks.
        cache: of the rows.
        recorder: makes graphs of steps; None computes all of them plainly.
    """

    def __init__(self, policy: PolicyModel, cache: RowCache, recorder: Recorder | None) -> None:
        self.policy = policy
        self.cache = cache
        self._record = recorder
        self._graphs: dict[Shape, Callable[[], None]] = {}
        self._num_plain: Counter[Shape] = Counter()
        self._inputs: _Inputs | None = None

    def __call__(self, tokens: Tensor, cached: Tensor) -> Tensor:
        """Write the newest tokens into the cache, without advancing it.

        Args:
            tokens: `[b]` int64, of the rows in use.
            cached: `[b]` int64, tokens that each has in the cache.

        Returns:
            `[b, V]` float32, good until the next call.
        """
        if self._record is None:
            return self._plain(tokens, cached)
        shape = shape_of(self.cache)
        if shape in self._graphs:
            inputs = self._fill(tokens, cached)
            self._graphs[shape]()
            return inputs.logits[: len(tokens)]
        logits = self._plain(tokens, cached)
        self._num_plain[shape] += 1
        if self._num_plain[shape] >= _STEPS_BEFORE_RECORDING:
            self._add_graph(self._record, shape, tokens, cached, logits)
        return logits

    def _plain(self, tokens: Tensor, cached: Tensor) -> Tensor:
        readable = self.cache.readable(cached)
        return self.policy.next_logits(tokens[:, None], cached[:, None], readable, self.cache)

    def _add_graph(
        self, record: Recorder, shape: Shape, tokens: Tensor, cached: Tensor, logits: Tensor
    ) -> None:
        """Record the step that was just computed, and compare: `logits` are the plain ones."""
        try:
            if self._inputs is None:
                self._inputs = _Inputs.make(self.cache, logits)
            inputs = self._fill(tokens, cached)
            replay = record(partial(self._fixed, inputs, shape))
            replay()
            is_same = agree(inputs.logits[: len(tokens)], logits)
            problem = "" if is_same else "their logits are not those of the plain step"
        except Exception as error:  # whatever an architecture's code or the device raises
            # A recording that cannot be ended raises an error of its own, which tells less.
            cause = error.__context__ or error
            problem = f"{type(cause).__name__}: {cause}".splitlines()[0]
        if problem:
            self._record = self._inputs = None
            self._graphs.clear()
            go_without_graphs(self.policy, problem)
        else:
            self._graphs[shape] = replay

    def _fill(self, tokens: Tensor, cached: Tensor) -> _Inputs:
        inputs = self._inputs
        assert inputs is not None
        inputs.tokens[: len(tokens)] = tokens
        inputs.cached[: len(tokens)] = cached
        inputs.column.fill_(self.cache.window.end)
        return inputs

    def _fixed(self, inputs: _Inputs, shape: Shape) -> None:
        """Compute a step of fixed shape: the part that a graph repeats."""
        rows = slice(shape.num_rows)
        tokens, cached = inputs.tokens[rows], inputs.cached[rows]
        with self.cache.fixed(FixedStep(*shape, inputs.column)):
            readable = self.cache.readable(cached)
            logits = self.policy.next_logits(tokens[:, None], cached[:, None], readable, self.cache)
        inputs.logits[rows] = logits


class _Inputs(NamedTuple):
    """What a graph reads, and its result, of as many rows as the cache has.

    Attributes:
        tokens: `[B]` int64; any token in rows that are not in use, as in `cached`.
        cached: `[B]` int64.
        column: `[1]` int64, where the new keys and values go.
        logits: `[B, V]`.
    """

    tokens: Tensor
    cached: Tensor
    column: Tensor
    logits: Tensor

    @classmethod
    def make(cls, cache: RowCache, logits: Tensor) -> _Inputs:
        num_rows = cache.window.num_rows
        numbers = torch.zeros(2 * num_rows + 1, dtype=torch.long, device=logits.device)
        tokens, cached, column = numbers.split([num_rows, num_rows, 1])
        return cls(tokens, cached, column, logits.new_zeros(num_rows, logits.shape[-1]))


def shape_of(cache: RowCache) -> Shape:
    """Return the shape that the next step of a cache is rounded up to.

    Rows are 8, 12, 16, 24, 32, 48 and so on, so that a third of them at most are none of ours.
    """
    window = cache.window
    size = max(window.size, _LEAST_ROWS)
    multiple = 1 << ((size - 1).bit_length() - 2)
    num_rows = min(-(-size // multiple) * multiple, window.num_rows)
    first = window.first // _COLUMNS * _COLUMNS
    stop = min(-(-(window.end + 1) // _COLUMNS) * _COLUMNS, window.num_columns)
    return Shape(num_rows, first, stop)


def agree(ours: Tensor, plain: Tensor) -> bool:
    """Tell whether two computations of logits `[b, V]` differ by rounding alone.

    Rows whose plain logits are no numbers are left to the draw, which refuses them.
    """
    gap = (ours - plain).abs().mean(-1)
    scale = (plain - plain.mean(-1, keepdim=True)).abs().mean(-1)
    is_same = (gap <= _TOLERANCE * scale) | ~plain.isfinite().all(-1)
    return bool(is_same.all())


def go_without_graphs(policy: PolicyModel, reason: str) -> None:
    """Say once that a policy decodes without graphs, and remember it."""
    if policy not in _without_graphs:
        _without_graphs.add(policy)
        _log.warning("decoding goes on without CUDA graphs, more slowly: %s", reason)


def recorder_for(policy: PolicyModel, device: torch.device) -> Recorder | None:
    """Return what records graphs on a device, or None where steps are computed plainly."""
    if device.type != "cuda" or policy in _without_graphs:
        return None
    if any(isinstance(module, FSDPModule) for module in policy.modules()):
        go_without_graphs(policy, "the hooks of fsdp2 cannot be recorded")
        return None
    return CUDARecorder(device)


class CUDARecorder:
    """Records CUDA graphs that share their memory: none of them keeps a result in it.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a function twice: once to warm up, and once to record what it launches.

        Args:
            run: reads and writes tensors that stay where they are, and never waits for the device.

        Returns:
            Launches the same again.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # The outer context gives the stream back where the inner one fails to end a recording.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # What is made at a first call, such as weights that autocast casts, is no part of it.
            run()
            record = partial(torch.cuda.graph, graph, pool=self._pool, stream=self._stream)
            with record(capture_error_mode="thread_local"):  # other threads may load data meanwhile
                run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        replay: Callable[[], None] = graph.replay
        return replay
