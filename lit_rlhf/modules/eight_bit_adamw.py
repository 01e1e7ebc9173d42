"""torchao's AdamW with moments of 8 bits; imported only where it is asked for.

Moments are stored in blocks of 256 numbers with a scale each (Dettmers et al. 2022, arXiv
2110.02861); tensors of fewer than 4096 numbers, or not of whole blocks, stay as they are. torchao
compiles its step when it first runs: on a CPU that needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

_SIGNED = {"exp_avg": True, "exp_avg_sq": False}
_CODES, _SCALE = ".codes", ".scale"


class EightBitAdamW(AdamW8bit):  # type: ignore[misc]  # torchao has no types
    """AdamW with moments of 8 bits, whose state is saved as plain tensors.

    A checkpoint must be readable where torchao is not installed: the next phase needs the weights
    alone. bf16 weights are rounded at random, from a stream named by seed and step.

    Args:
        parameters: groups of float32 or bf16 tensors, not sharded.
        learning_rate: of all groups.
        betas: decay of the two moments.
        eps: added to the root.
        seed: of the rounding.
    """

    def __init__(
        self,
        parameters: Iterable[dict[str, Any]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        seed: int = 0,
    ) -> None:
        super().__init__(
            parameters,
            lr=learning_rate,
            betas=betas,
            eps=eps,
            weight_decay=0.0,
            bf16_stochastic_round=True,
        )
        self.seed = seed

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - the closure's
        """Update every parameter that has a gradient."""
        steps = [int(state["step"]) for state in self.state.values()]
        device = self._parameters()[0].device
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            torch.manual_seed(self.seed * 1_000_003 + max(steps, default=0))
            return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, quantised moments as codes and scales."""
        whole: dict[str, Any] = super().state_dict()
        states = {name: _taken_apart(state) for name, state in whole["state"].items()}
        return {**whole, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        states = {name: _put_together(state) for name, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": states})

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _taken_apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, OptimState8bit):
            plain |= {name + _CODES: value.codes, name + _SCALE: value.scale}
        else:
            plain[name] = value
    return plain


def _put_together(state: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: value for name, value in state.items() if "." not in name}
    for name, is_signed in _SIGNED.items():
        if name + _CODES in state:
            codes, scale = state[name + _CODES], state[name + _SCALE]
            block_size = codes.numel() // scale.numel()
            empty = OptimState8bit.zeros(codes.shape, is_signed, block_size, codes.device)
            whole[name] = OptimState8bit(codes, scale, empty.qmap, is_signed)
    return whole
