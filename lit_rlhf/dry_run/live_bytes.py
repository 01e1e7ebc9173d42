"""How many bytes are in use at once while something computes, without computing it.

Under torch's FakeTensorMode tensors have shapes and types, but no numbers: a model of any size runs
in seconds and in no memory. What is counted is what an allocator that wastes nothing would hold.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
_HALF = (torch.bfloat16, torch.float16)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors that come into being inside.

    Attributes:
        now: bytes in use.
        peak: the most that there were.
        half_products: matrix products in 16 bits that differ in their shapes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.now = 0
        self.peak = 0
        self.half_products: set[object] = set()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and result.dtype in _HALF:
            factors = [one for one in args if isinstance(one, Tensor)]
            self.half_products.add((func, *((one.shape, one.stride()) for one in factors)))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Tensor):
                self.count(one)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory, once, until it is given back."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._give_back, size)

    def _give_back(self, size: int) -> None:
        self.now -= size


@contextmanager
def live_bytes(known: Iterator[Tensor]) -> Iterator[LiveBytes]:
    """Count what is made inside; tensors that are there already do not count.

    Args:
        known: weights and the like.
    """
    live = LiveBytes()
    for tensor in known:
        live.count(tensor)
    live.now = live.peak = 0
    with live:
        yield live


def without_numbers() -> FakeTensorMode:
    """Return the mode in which tensors have no numbers."""
    return FakeTensorMode()
