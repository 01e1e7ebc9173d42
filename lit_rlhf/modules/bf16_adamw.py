"""AdamW whose moments, or weights too, are held in bf16 and rounded at random.

bf16 has 8 bits for a number's digits: from 1 the next number up is 1/128 away. Rounded to the
nearest, every smaller update of a weight is lost, and a run at 1e-6 does not move. A moment whose
decay is near one does not move either. Rounded to either neighbour, to the nearer one with the
larger probability, the number is right in the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's own names
# Elements that are worked on at a time. On a CPU their float32 copies stay in cache; on a GPU a
# piece is worth its dozen kernels. No tensor in float32 is ever as large as the embeddings.
_PIECE_CPU = 2**18
_PIECE_GPU = 2**22
_NUM_STORED = 3  # weight and moments


def round_to_bf16(values: Tensor, noise: Tensor) -> Tensor:
    """Round to one of the two neighbours in bf16, to each in proportion to how near it is.

    The float32's lower 16 bits say how far it lies beyond the bf16 below (in magnitude); a random
    number of 16 bits, added, carries into the upper ones with just that probability. Source: Gupta
    et al. 2015, arXiv 1502.02551, section 3 (stochastic rounding).

    Args:
        values: float32, any shape, contiguous; overwritten by the result in float32.
        noise: int16 of the same shape, each of its 2^16 numbers equally likely.

    Returns:
        bf16. A number that bf16 has, an infinity among them, is returned as it is.
    """
    values.view(torch.int32).add_(noise).add_(1 << 15).bitwise_and_(-(1 << 16))
    return values.to(torch.bfloat16)


class BF16AdamW(Optimizer):
    """AdamW with moments, and perhaps weights, in bf16, rounded at random.

    The update is computed in float32, in pieces:
    `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
    `w = w (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.
    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2; the place of `eps` is torch's.
    What is stored in float32 is not rounded at all.

    The random numbers of a step are named by seed, parameter and step: each process of `ddp`
    draws the same, and a resumed run goes on with those that the interrupted one would have drawn.

    Args:
        parameters: float32 or bf16 tensors, or groups of them; sharded ones are updated in place.
        learning_rate: of all groups.
        betas: decay of the two moments.
        eps: added to the root.
        moment_dtype: how the moments are stored, `torch.bfloat16` or `torch.float32`.
        seed: of the rounding.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        moment_dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": learning_rate, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(parameters, defaults)
        self.moment_dtype = moment_dtype
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - the closure's
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        noises: _Noises = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, noises)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch would cast the moments to the type of their weights."""
        super().load_state_dict(state_dict)
        saved = [name for group in state_dict["param_groups"] for name in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for name, parameter in zip(saved, own, strict=True):
            for moment in _MOMENTS:
                if moment in self.state[parameter]:
                    value = state_dict["state"][name][moment]
                    self.state[parameter][moment] = value.to(parameter.device, self.moment_dtype)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], noises: _Noises) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter, dtype=self.moment_dtype)
        state["step"] += 1
        step, device = int(state["step"]), parameter.device
        # Without the device's number: the processes of `ddp` have one each, and must agree.
        name, key = f"{self.seed} {step} {_shard_of(parameter)}", (step, device)
        noise = noises.get(key) or noises.setdefault(key, _Noise(name, device))
        rate, betas, eps, decay = (group[key] for key in ("lr", "betas", "eps", "weight_decay"))
        numbers = _Numbers(step, rate, betas, eps, decay)
        assert parameter.grad is not None
        # A gradient may have any strides; what is written to must not become a copy.
        rows = [
            _local(parameter).view(-1),
            _local(parameter.grad).reshape(-1),
            *(_local(state[moment]).view(-1) for moment in _MOMENTS),
        ]
        for pieces in zip(*(row.split(piece_size(device)) for row in rows), strict=True):
            _update_piece(pieces, numbers, noise)


def piece_size(device: torch.device) -> int:
    """Return how many elements are worked on at a time."""
    return _PIECE_CPU if device.type == "cpu" else _PIECE_GPU


def _shard_of(parameter: Tensor) -> int:
    """Number the shares of a sharded weight, so that they do not share their noise."""
    return parameter.device_mesh.get_rank() if isinstance(parameter, DTensor) else 0


class _Numbers(NamedTuple):
    """The numbers of one parameter's step."""

    step: int
    rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class _Noise:
    """Random numbers of 16 bits, from a stream that is named by a text.

    To draw them all would take longer than all the rest of the step. One block is drawn, and each
    piece has it with bits flipped by a number of its own: every number is as likely as any other,
    and any two are independent of each other, so that means and variances of all sums are those
    of fresh numbers.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        # Torch's generator on CPUs reads 32 bits of its seed.
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        size = piece_size(device)
        # A draw of 64 bits makes four numbers.
        draws = torch.empty(_NUM_STORED * size // 4, dtype=torch.int64, device=device)
        draws.random_(-(2**63), None, generator=self._generator)  # None: up to the largest
        self._block = draws.view(torch.int16).view(_NUM_STORED, size)

    def draw(self, num_rows: int, size: int) -> Tensor:
        """Return `[num_rows, size]` int16 for the next piece, all 2^16 numbers equally likely."""
        flips = torch.empty(num_rows, 1, dtype=torch.int16, device=self._device)
        flips.random_(-(2**15), 2**15, generator=self._generator)
        return self._block[:num_rows, :size] ^ flips


_Noises = dict[tuple[int, torch.device], _Noise]  # of a step, by its number


def _local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _update_piece(tensors: tuple[Tensor, ...], numbers: _Numbers, noise: _Noise) -> None:
    """Update `[n]` elements in place: of weight, gradient, mean and mean of squares."""
    # Of a float32 tensor `float()` is the tensor itself, which torch's update writes to.
    weight, gradient, mean, square = wide = [tensor.float() for tensor in tensors]
    adamw(
        [weight],
        [gradient],
        [mean],
        [square],
        [],
        [torch.tensor(numbers.step - 1.0, device=weight.device)],  # counted up within
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=numbers.rate,
        beta1=numbers.betas[0],
        beta2=numbers.betas[1],
        weight_decay=numbers.weight_decay,
        eps=numbers.eps,
    )
    stored = [
        (tensor, value)
        for tensor, value in zip(tensors, wide, strict=True)
        if tensor.dtype == torch.bfloat16 and value is not gradient
    ]
    for (tensor, value), row in zip(stored, noise.draw(len(stored), len(weight)), strict=True):
        tensor.copy_(round_to_bf16(value, row))
