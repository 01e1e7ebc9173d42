"""Norms and gated MLPs of Llama and its relatives with their own backward: fewer passes, less kept.

Autograd keeps every intermediate of transformers' layers: three copies of a norm's input, and four
tensors as wide as the MLP. Here a norm keeps its input and one number a token, an MLP its two
projections; what the backward needs beyond them is computed again, element by element. The
arithmetic is transformers' own; `tests/cpu/test_layers.py` compares the two.
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

from lit_rlhf.cpu.lora import Adapter, active_adapter, is_plain_lora, lora_forward

# weight * (x / rms(x)), the root in float32.
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
# down(silu(gate(x)) * up(x)).
_MLPS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)


def lighten(model: nn.Module) -> None:
    """Give a model's norms, gated MLPs and LoRA layers their own backward, in place.

    Weights, names and results stay as they are; layers of other classes are left alone.
    """
    for module in model.modules():
        if type(module) in _NORMS:
            module.forward = MethodType(_norm_forward, module)
        elif type(module) in _MLPS and _is_silu(module.act_fn):
            module.forward = MethodType(_mlp_forward, module)
        elif is_plain_lora(module):
            module.forward = MethodType(lora_forward, module)


def _is_silu(activation: Any) -> bool:  # noqa: ANN401 - transformers' own or torch's class
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _norm_forward(self: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401 - one of `_NORMS`
    normed: Tensor = _RMSNorm.apply(hidden, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return normed


def _mlp_forward(self: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401 - one of `_MLPS`
    gate, up, down = self.gate_proj(hidden), self.up_proj(hidden), self.down_proj
    adapter = active_adapter(down) if is_plain_lora(down) else None
    base: Any = down if adapter is None else down.get_base_layer()
    output: Tensor
    if type(base) is nn.Linear and getattr(base, "bias", None) is None:
        output = _SwiGLUDown.apply(gate, up, base.weight, *(adapter or (None, None, 0.0)))  # type: ignore[no-untyped-call]  # as above
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
    """`p W^T + scaling p A^T B^T` of `p = silu(gate) * up`, which is computed again for gradients.

    A and B are those of a LoRA adapter, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as above
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        lora_down: Tensor | None,
        lora_up: Tensor | None,
        scaling: float,
    ) -> Tensor:
        hidden = None
        with torch.autocast(gate.device.type, enabled=False):
            product = functional.silu(gate).mul_(up)
            output = functional.linear(product, weight.to(gate.dtype))
            if lora_down is not None and lora_up is not None:
                adapter = Adapter(lora_down, lora_up, scaling).to(gate.dtype)
                flat = output.view(-1, output.shape[-1])
                hidden = adapter.add_to(flat, product.flatten(0, -2))
        ctx.save_for_backward(gate, up, weight, lora_down, lora_up, hidden)
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        gate, up, weight, lora_down, lora_up, hidden = ctx.saved_tensors
        grad_weight = grad_down = grad_up = None
        with torch.autocast(gate.device.type, enabled=False):
            flat = grad.flatten(0, -2)
            grad_product = flat @ weight.to(grad.dtype)
            if ctx.needs_input_grad[2] or lora_down is not None:
                product = functional.silu(gate).mul_(up).flatten(0, -2)
            if ctx.needs_input_grad[2]:
                grad_weight = (flat.t() @ product).to(weight.dtype)
            if lora_down is not None:
                adapter = Adapter(lora_down, lora_up, ctx.scaling).to(grad.dtype)
                grad_down, grad_up = adapter.gradients(flat, product, hidden, grad_product)
                grad_down, grad_up = grad_down.to(lora_down.dtype), grad_up.to(lora_up.dtype)
            gate_gradients = _gate_gradients(gate, up, grad_product.view(gate.shape))
        return *gate_gradients, grad_weight, grad_down, grad_up, None


def _gate_gradients(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up from that of `silu(gate) * up`."""
    grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return grad_gate, functional.silu(gate).mul_(grad)
