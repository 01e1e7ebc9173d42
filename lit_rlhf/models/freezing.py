"""Which weights of a model train, and in which type they are stored."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.models.backbone import without_adapter_wrapper


def freeze(model: nn.Module, linear_dtype: torch.dtype | None = None) -> nn.Module:
    """Make a model a fixed reference: no gradients, evaluation mode.

    Args:
        model: changed in place.
        linear_dtype: store the linear layers in this dtype, and all else in float32. Under autocast
            to the same dtype the results are those of float32 weights, which would be cast at every
            call.

    Returns:
        The same model.
    """
    model.requires_grad_(False).eval()
    if linear_dtype is not None:
        tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        linear = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Linear) and id(module.weight) not in tied
            for parameter in module.parameters()
        }
        parameters = list(model.parameters())
        # Layers that are kept as they were read stay views of the loaded file, which all processes
        # share. Where they are cast, one weight that is still a view would keep all of it.
        is_cast = any(one.dtype != linear_dtype for one in parameters if id(one) in linear)
        for parameter in parameters:
            dtype = linear_dtype if id(parameter) in linear else torch.float32
            parameter.data = parameter.data.to(dtype, copy=is_cast)
    return model


def freeze_unread(model: nn.Module) -> None:
    """Freeze, in place, what texts never reach: a model's towers for images and sounds.

    Processes that average gradients (ddp) would wait for those of the towers in vain.

    Args:
        model: a transformers model, adapters in place.
    """
    inner = without_adapter_wrapper(model)
    text_config = inner.config.get_text_config()
    if text_config is inner.config:
        return
    readers: list[nn.Module] = [
        module
        for module in inner.modules()
        if isinstance(module, PreTrainedModel) and type(module.config) is type(text_config)
    ]
    if (output := inner.get_output_embeddings()) is not None:
        readers.append(output)
    read = {id(parameter) for module in readers for parameter in module.parameters()}
    for parameter in inner.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)


def hold_in_float32(model: nn.Module) -> None:
    """Store the weights of a model, or of a part, in float32, in place.

    Args:
        model: what trains whole, as it was read: float32, or the 16 bits of its file.
    """
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def hold_in_bf16(model: nn.Module) -> None:
    """Store the weights of a model in bf16, in place: embeddings, layers, norms and output.

    Adapters stay as they are, and so do buffers: rotations by large positions need float32.

    Args:
        model: a transformers model, adapters in place.
    """
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
