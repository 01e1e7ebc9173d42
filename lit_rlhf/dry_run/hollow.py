"""Models without numbers: as the phases build them, in no memory, whatever their size."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rlhf.cpu import install
from lit_rlhf.dry_run.live_bytes import live_bytes, without_numbers
from lit_rlhf.models.backbone import (
    LoRAConfig,
    apply_lora,
    transformer_layers,
    trunk_of,
    vocabulary_of,
    without_adapter_wrapper,
)
from lit_rlhf.models.freezing import freeze, freeze_unread, hold_in_bf16
from lit_rlhf.models.handover import attention_for, config_of
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from lit_rlhf.objectives.logprobs import chunked_logprobs

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Rows(NamedTuple):
    """What one forward reads: `R` packed rows of `W` tokens.

    Attributes:
        num_rows: `R`.
        width: `W`.
        num_scored: tokens that meet the vocabulary or the scalar head.
        has_mask: packed rows are told apart by a mask.
    """

    num_rows: int
    width: int
    num_scored: int
    has_mask: bool

    @property
    def num_tokens(self) -> int:
        """Places that are computed, gaps and padding included."""
        return self.num_rows * self.width


class Kind(NamedTuple):
    """How a model is built and stored.

    Attributes:
        source: hub name or folder.
        role: "policy" trains or not; "reward" has no vocabulary.
        trains: all of its weights, or its adapters.
        lora: adapters, if any.
        weights: how trained weights are stored.
        precision: the Trainer's.
        checkpointing: activations are computed again.
        on_cpu: the layers made for CPUs.
    """

    source: str
    role: Literal["policy", "reward"]
    trains: bool
    lora: LoRAConfig | None = None
    weights: Literal["float32", "bf16"] = "float32"
    precision: str = "32-true"
    checkpointing: bool = False
    on_cpu: bool = True


class Sizes(NamedTuple):
    """Bytes and numbers of a model's weights.

    Attributes:
        trained: bytes of those that train.
        frozen: bytes of the others.
        num_trained: how many numbers train.
        num_parameters: all of them.
        cast: bytes of the copies that autocast or packed decoding make of linear layers.
        cached_token: bytes that keys and values of a token take.
        gathered: bytes of all weights on one process, as sharding gathers them.
    """

    trained: int
    frozen: int
    num_trained: int
    num_parameters: int
    cast: int
    cached_token: int
    gathered: int


class Step(NamedTuple):
    """What a forward and backward take.

    Attributes:
        peak: the most bytes of activations and gradients.
        num_half_products: matrix products in 16 bits that differ in their shapes.
    """

    peak: int
    num_half_products: int


class Hollow:
    """A model without numbers.

    Args:
        kind: how it is built.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.mode = without_numbers()
        config = config_of(kind.source)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention_for(config)
            )
            model: PreTrainedModel = whole if kind.role == "policy" else trunk_of(whole)
            self.model: nn.Module = self._stored(model)
        with self.mode:
            _put_on_cpu(self.model)

    def _stored(self, model: PreTrainedModel) -> nn.Module:
        kind, stored = self.kind, model
        if kind.lora is not None or not kind.trains:
            freeze(model, _HALF.get(kind.precision))
        adapted: nn.Module = stored if kind.lora is None else apply_lora(model, kind.lora)
        freeze_unread(adapted)
        if kind.weights == "bf16":
            hold_in_bf16(adapted)
        if kind.on_cpu:
            install(adapted, packs_for_decoding=False)
        if kind.checkpointing and kind.trains:
            checkpoint_activations(adapted)
        return adapted

    @property
    def sizes(self) -> Sizes:
        """What the weights take."""
        parameters = list(self.model.parameters())
        trained = [one for one in parameters if one.requires_grad]
        config = without_adapter_wrapper(self.model).config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        itemsize = 2 if self.kind.precision in _HALF else 4
        return Sizes(
            sum(one.nbytes for one in trained),
            sum(one.nbytes for one in parameters if not one.requires_grad),
            sum(one.numel() for one in trained),
            sum(one.numel() for one in parameters),
            self._cast_bytes(),
            2 * config.num_hidden_layers * heads * width * itemsize,
            sum(self._layer_bytes) + self._other_bytes,
        )

    @property
    def gathered_bytes(self) -> int:
        """Bytes that sharding gathers while layers compute: two of them, and what is in none."""
        return 2 * max(self._layer_bytes) + self._other_bytes

    @property
    def _layer_bytes(self) -> list[int]:
        """Bytes of each layer as it is gathered: in the type of autocast."""
        is_half = self.kind.precision in _HALF
        return [
            sum(one.numel() * 2 if is_half else one.nbytes for one in layer.parameters())
            for layer in transformer_layers(self.model)
        ]

    @property
    def _other_bytes(self) -> int:
        """Bytes of what is in no layer."""
        layers = transformer_layers(self.model)
        inside = {id(one) for layer in layers for one in layer.parameters()}
        return sum(one.nbytes for one in self.model.parameters() if id(one) not in inside)

    def _cast_bytes(self) -> int:
        half = _HALF.get(self.kind.precision)
        linear = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        size = 0
        for module in linear:
            is_merged = self.kind.on_cpu and self.kind.lora is not None
            if half is not None and (is_merged or module.weight.dtype != half):
                size += 2 * module.weight.numel()
            elif half is None and is_merged:
                size += 4 * module.weight.numel()
        return size

    def step(self, rows: Rows, *, accumulates: bool) -> Step:
        """Take a forward and backward.

        Args:
            rows: of a micro-batch.
            accumulates: gradients of micro-batches before it are there.
        """
        with self.mode:
            for parameter in self.model.parameters():
                has_gradient = accumulates and parameter.requires_grad
                parameter.grad = torch.zeros_like(parameter) if has_gradient else None
            with live_bytes(self.model.parameters()) as live:
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        live.count(parameter.grad)
                with self._autocast():
                    loss = self._scores(rows).sum()
                loss.backward()
            return Step(live.peak, len(live.half_products))

    def forward_peak(self, rows: Rows) -> int:
        """Return the most bytes of activations in a forward without gradients."""
        with self.mode, torch.no_grad(), self._autocast():
            with live_bytes(self.model.parameters()) as live:
                self._scores(rows)
            return live.peak

    def _autocast(self) -> torch.autocast:
        half = _HALF.get(self.kind.precision)
        # As Lightning's, which keeps no casts: each layer casts its weights again.
        return torch.autocast("cpu", dtype=half, enabled=half is not None, cache_enabled=False)

    def _scores(self, rows: Rows) -> Tensor:
        inner = without_adapter_wrapper(self.model)
        shape = (rows.num_rows, rows.width)
        inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
        if rows.has_mask:
            inputs["position_ids"] = torch.zeros(shape, dtype=torch.long)
            mask = torch.ones(rows.num_rows, 1, rows.width, rows.width, dtype=torch.bool)
            inputs["attention_mask"] = mask
        states = trunk_of(inner)(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        scored = states[torch.zeros(rows.num_scored, dtype=torch.long)]
        if self.kind.role == "reward":
            values: Tensor = scored.float() @ torch.zeros(scored.shape[1], 1)
            return values
        vocabulary = vocabulary_of(self.model)
        targets = torch.zeros(rows.num_scored, dtype=torch.long)
        scores = chunked_logprobs(scored, vocabulary.weight, targets, bias=vocabulary.bias)
        return scores.logprobs


def _put_on_cpu(model: nn.Module) -> None:
    """Replace tensors of the meta device by ones of the CPU, under a mode without numbers."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # what is tied stays so
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
