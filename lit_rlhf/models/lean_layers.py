"""Norms and gated MLPs of Llama and its relatives with their own backward: fewer passes, less kept.

Autograd keeps every intermediate of transformers' layers: three copies of a norm's input, and four
tensors as wide as the MLP. Here a norm keeps its input and one number a token, an MLP its two
projections; what the backward needs beyond them is computed again, element by element. The
arithmetic is transformers' own; `tests/models/test_lean_layers.py` compares the two.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

# weight * (x / rms(x)), the root in float32.
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
# down(silu(gate(x)) * up(x)).
_MLPS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)


def lighten(model: nn.Module) -> None:
    """Give a model's norms and gated MLPs their own backward, in place.

    Weights, names and results stay as they are; layers of other classes are left alone.
    """
    for module in model.modules():
        if type(module) in _NORMS:
            module.forward = MethodType(_norm_forward, module)
        elif type(module) in _MLPS and _is_silu(module.act_fn):
            module.forward = MethodType(_mlp_forward, module)


def _is_silu(activation: Any) -> bool:  # noqa: ANN401 - transformers' own or torch's class
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _norm_forward(self: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401 - one of `_NORMS`
    normed: Tensor = _RMSNorm.apply(hidden, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return normed


def _mlp_forward(self: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401 - one of `_MLPS`
    gate, up, down = self.gate_proj(hidden), self.up_proj(hidden), self.down_proj
    # Not where it is adapted, or has a bias.
    is_weight_alone = type(down) is nn.Linear and getattr(down, "bias", None) is None
    if is_weight_alone:
        output: Tensor = _SwiGLUDown.apply(gate, up, down.weight)  # type: ignore[no-untyped-call]  # as above
    else:
        output = down(_SwiGLU.apply(gate, up))  # type: ignore[no-untyped-call]  # as above
    return output


class _RMSNorm(torch.autograd.Function):
    """`weight * (x * scale)` with `scale = 1 / sqrt(mean(x^2) + eps)`. Source: Zhang & Sennrich."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ANN401 - torch has no type for it
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))  # [..., 1]
        ctx.save_for_backward(hidden, weight, scale)
        return weight * (wide * scale).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401 - as above
        hidden, weight, scale = ctx.saved_tensors
        normed = hidden.float() * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            products = grad * normed.to(grad.dtype)
            grad_weight = products.flatten(0, -2).sum(0).to(weight.dtype)
        # With n = x * scale and g = grad * weight: dx = scale * (g - n * mean(g * n)).
        weighted = (grad * weight).float()
        share = (weighted * normed).mean(-1, keepdim=True)
        grad_hidden = weighted.sub_(normed.mul_(share)).mul_(scale)
        return grad_hidden.to(hidden.dtype), grad_weight, None


class _SwiGLU(torch.autograd.Function):
    """`silu(gate) * up`, of which only the two factors are kept. Source: Shazeer 2020."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # noqa: ANN401 - as above
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - as above
        gate, up = ctx.saved_tensors
        return _gate_gradients(gate, up, grad)


class _SwiGLUDown(torch.autograd.Function):
    """`(silu(gate) * up) W^T`: the product before `W` is computed again for its gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401 - as above
        ctx.save_for_backward(gate, up, weight)
        with torch.autocast(gate.device.type, enabled=False):
            return functional.linear(functional.silu(gate).mul_(up), weight.to(gate.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: ANN401 - as above
        gate, up, weight = ctx.saved_tensors
        with torch.autocast(gate.device.type, enabled=False):
            grad_weight = None
            if ctx.needs_input_grad[2]:
                product = functional.silu(gate).mul_(up).flatten(0, -2)
                grad_weight = (grad.flatten(0, -2).t() @ product).to(weight.dtype)
            grad_product = grad @ weight.to(grad.dtype)
            return (*_gate_gradients(gate, up, grad_product), grad_weight)


def _gate_gradients(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up from that of `silu(gate) * up`."""
    grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return grad_gate, functional.silu(gate).mul_(grad)
