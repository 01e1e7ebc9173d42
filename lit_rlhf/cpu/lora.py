"""Linear layers with a LoRA adapter in fewer passes: the low-rank part is added by the product.

peft forms `B A x`, scales it and adds it to `W x`: three more tensors as wide as the output, and as
many in the backward, for a product that costs next to nothing. On a CPU the passes cost more than
the product. Here BLAS adds as it multiplies. Source of the adapter: Hu et al. 2021, equation 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoRALayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lit_rlhf.objectives.precision import product_dtype


class Adapter(NamedTuple):
    """One active adapter of a linear layer.

    Attributes:
        down: `[r, in]`, peft's A.
        up: `[out, r]`, peft's B.
        scaling: the factor on their product.
    """

    down: Tensor
    up: Tensor
    scaling: float

    def to(self, dtype: torch.dtype) -> Adapter:
        """Return the same adapter in another type."""
        return Adapter(self.down.to(dtype), self.up.to(dtype), self.scaling)

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Add `scaling * inputs A^T B^T` to the output, in place.

        Args:
            output: `[N, out]`.
            inputs: `[N, in]`.

        Returns:
            `[N, r]`, the inputs in the low rank, for `gradients`.
        """
        hidden = inputs @ self.down.t()
        output.addmm_(hidden, self.up.t(), alpha=self.scaling)
        return hidden

    def gradients(
        self, grad: Tensor, inputs: Tensor, hidden: Tensor, grad_inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of A and B; add that of the inputs to `grad_inputs`, in place.

        Args:
            grad: `[N, out]`.
            inputs: `[N, in]`.
            hidden: `[N, r]`, from `add_to`.
            grad_inputs: `[N, in]`.
        """
        grad_hidden = (grad @ self.up).mul_(self.scaling)  # [N, r]
        grad_inputs.addmm_(grad_hidden, self.down)
        return grad_hidden.t() @ inputs, (grad.t() @ hidden).mul_(self.scaling)


def is_plain_lora(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer under peft's own LoRA, of whatever rank."""
    return type(module) is LoRALayer and type(module.get_base_layer()) is nn.Linear


def active_adapter(module: Any) -> Adapter | None:  # noqa: ANN401 - peft's layers are untyped
    """Return the one adapter that a plain LoRA layer computes with now.

    Returns:
        None where none or several are switched on, one is merged into the weights, or it is more
        than two matrices (dropout, DoRA, biases).
    """
    if module.disable_adapters or module.merged:
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if len(names) != 1 or names[0] in module.lora_variant:
        return None
    (name,) = names
    down, up = module.lora_A[name], module.lora_B[name]
    is_bare = down.bias is None and up.bias is None
    if not is_bare or not isinstance(module.lora_dropout[name], nn.Identity):
        return None
    return Adapter(down.weight, up.weight, float(module.scaling[name]))


def has_one_weight(layer: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a layer, its adapter (if any) added, is a product with one matrix."""
    if not is_plain_lora(layer):
        return isinstance(layer, nn.Linear)
    return layer.disable_adapters or bool(layer.merged) or active_adapter(layer) is not None


def lora_forward(self: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - as above
    """Compute a plain LoRA layer: the `forward` that `cpu.install` gives it."""
    adapter = None if args or kwargs else active_adapter(self)
    output: Tensor
    if adapter is None:
        output = type(self).forward(self, inputs, *args, **kwargs)
    else:
        base = self.get_base_layer()
        output = _LoRALinear.apply(inputs, base.weight, base.bias, *adapter)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return output


class _LoRALinear(torch.autograd.Function):
    """`x W^T + b + scaling x A^T B^T`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        dtype = product_dtype(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            adapter = Adapter(down, up, scaling).to(dtype)
            cast = inputs.to(dtype)
            output = functional.linear(
                cast, weight.to(dtype), None if bias is None else bias.to(dtype)
            )
            hidden = adapter.add_to(
                output.view(-1, output.shape[-1]), cast.reshape(-1, cast.shape[-1])
            )
        ctx.save_for_backward(cast, hidden, weight, down, up)
        ctx.scaling, ctx.inputs_dtype = scaling, inputs.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        inputs, hidden, weight, down, up = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            flat, rows = (one.reshape(-1, one.shape[-1]) for one in (grad, inputs))
            grad_inputs = flat @ weight.to(grad.dtype)
            adapter = Adapter(down, up, ctx.scaling).to(grad.dtype)
            grad_down, grad_up = adapter.gradients(flat, rows, hidden, grad_inputs)
            grad_weight = (flat.t() @ rows).to(weight.dtype) if ctx.needs_input_grad[1] else None
            grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return (
            grad_inputs.view(inputs.shape).to(ctx.inputs_dtype),
            grad_weight,
            grad_bias,
            grad_down.to(down.dtype),
            grad_up.to(up.dtype),
            None,
        )
