"""What is between transformers' models and ours: the trunk, its vocabulary matrix, LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.devices import waits_for_gpu
from lit_rlhf.models.packing import lay_end_to_end, pack_rows
from lit_rlhf.models.sequence_attention import ATTENTION_NAME as SEQUENCE_ATTENTION
from lit_rlhf.ranges import require

# How the architectures' configurations spell a dropout rate.
_DROPOUT_NAMES = (
    "dropout",
    "dropout_p",
    "dropout_prob",
    "dropout_rate",
    "pdrop",
    "drop_rate",
    "layerdrop",
)


# How the attention implementations begin to which a mask of any shape can be handed.
_TAKING_A_MASK = ("sdpa", "eager")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the linear layers. Source: Hu et al. 2021, arXiv 2106.09685.

    Attributes:
        rank: inner dimension of each adapter.
        alpha: the adapter's output is scaled by `alpha / rank`.
        target_modules: "all-linear" (every linear layer but the output), or names of layers; the
            output itself, or what is tied to it, cannot be one.
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        """Refuse a rank that leaves nothing to train."""
        if self.rank < 1:
            raise ConfigError(f"lora.rank must be at least 1, got {self.rank}")
        require("model.lora.alpha", self.alpha, above=0)


class HeadForm(NamedTuple):
    """What follows the product with the vocabulary matrix.

    Attributes:
        scale: factor on the logits (Cohere, Granite, Falcon H1); 1 elsewhere.
        softcap: `c * tanh(logits / c)` (Gemma 2), or None.
    """

    scale: float = 1.0
    softcap: float | None = None


class Vocabulary(NamedTuple):
    """How the last hidden state becomes logits: `softcap(scale * (h W^T + b))`.

    Attributes:
        weight: `[V, H]`.
        bias: `[V]` or None.
        scale: see `HeadForm`.
        softcap: likewise.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Map `[..., H]` to `[..., V]` float32."""
        return self.finish(nn.functional.linear(hidden, self.weight, self.bias))

    def finish(self, products: Tensor) -> Tensor:
        """Scale and cap products with the matrix: `[..., V]` float32."""
        logits = products.float()
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def without_adapter_wrapper(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, adapters (if any) in place."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def attention_of(model: PreTrainedModel) -> str:
    """Name the attention implementation that a model computes with."""
    return str(model.config._attn_implementation)


_PLAIN_HEAD = HeadForm()


def vocabulary_of(model: nn.Module, form: HeadForm = _PLAIN_HEAD) -> Vocabulary:
    """Read the output projection of a causal language model.

    Args:
        model: it, adapters in place.
        form: what follows the matrix, as `paths_of` has measured it.
    """
    output = without_adapter_wrapper(model).get_output_embeddings()
    bias = getattr(output, "bias", None)
    return Vocabulary(output.weight, bias, form.scale, form.softcap)


def head_forms(config: PretrainedConfig) -> list[HeadForm]:
    """Return what may follow a model's vocabulary matrix, likeliest first.

    The names say it, but not for all architectures alike: Granite divides by `logits_scaling`,
    HyperCLOVAX multiplies by it.
    """
    text_config = config.get_text_config()

    def named(*names: str) -> list[float]:
        values = [getattr(text_config, name, None) for name in names]
        return [float(value) for value in values if value]

    scaling = named("logits_scaling")
    scales = [1 / value for value in scaling] + scaling
    scales += [*named("logit_scale", "lm_head_multiplier", "output_multiplier"), 1.0]
    softcaps = [*named("final_logit_softcapping", "logits_soft_cap"), None]
    return [HeadForm(scale, softcap) for softcap in softcaps for scale in scales]


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformer without its vocabulary."""
    trunk = model.base_model
    if trunk is model and model.get_output_embeddings() is not None:
        # Llama 4's text model is named for another place of its trunk.
        trunk = next(child for child in model.children() if isinstance(child, PreTrainedModel))
    assert isinstance(trunk, PreTrainedModel)
    return trunk


def extend(
    trunk: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    cache: Cache,
) -> Tensor:
    """Extend cached sequences plainly.

    Args:
        trunk: a transformers base model.
        input_ids: `[B, S]` the tokens to add.
        position_ids: `[B, S]` their positions in their own sequences.
        attention_mask: `[B, cached + S]` bool, True at real tokens.
        cache: the keys and values so far; written to.

    Returns:
        `[B, H]` the last hidden state of each row's last token.
    """
    hidden: Tensor = trunk(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=step_mask(trunk, attention_mask, input_ids.shape[1]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    return hidden


def step_mask(trunk: nn.Module, readable: Tensor, num_new: int) -> Tensor:
    """Spare a GPU's host a wait at each step of decoding, where the architecture allows it.

    transformers looks whether all of a mask `[B, S]` is True. It takes a mask `[B, 1, 1, S]` as it
    is, which says the same where one token is added and no sliding window hides others. A CPU has
    nothing to wait for, and does without the mask where all is True.

    Args:
        trunk: a transformers base model.
        readable: `[B, S]` bool, True at real tokens.
        num_new: tokens that are added to each row.
    """
    model = without_adapter_wrapper(trunk)
    config = model.config.get_text_config()
    is_plain = (
        getattr(config, "sliding_window", None) is None
        and getattr(config, "rope_parameters", None) is not None  # others read positions off it
        and attention_of(model).startswith("sdpa")
    )
    if num_new == 1 and is_plain and waits_for_gpu(readable.device):
        return readable[:, None, None]
    return readable


def hidden_states(
    trunk: nn.Module, rows: TokenRows, width: int | None, *, by_sequence: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Run the trunk over rows, once, without their padding, and over shared prompts once.

    Args:
        trunk: a transformers base model (no head).
        rows: `B` rows of up to `L` tokens.
        width: tokens in a packed row, None for the padded layout (see `packing`).
        by_sequence: see `run_rows`.

    Returns:
        `[R * W, H]` hidden states, and `[B, L]` int64 with the place of each token in them.
    """
    output, places = run_rows(trunk, trunk, rows, width, by_sequence=by_sequence)
    return output.last_hidden_state.flatten(0, 1), places


def run_rows(
    module: nn.Module,
    trunk: nn.Module,
    rows: TokenRows,
    width: int | None,
    *,
    by_sequence: bool | None = None,
) -> tuple[Any, Tensor]:
    """Run a trunk, or the whole model around it, over rows, see `hidden_states`.

    Args:
        module: what is run.
        trunk: in it.
        rows: `B` rows of up to `L` tokens.
        width: tokens in a packed row, None for the padded layout.
        by_sequence: compute packed rows without a mask; None where `computes_by_sequence` says so.

    Returns:
        What `module` returns, and `[B, L]` int64 with the place of each token in its flattened
        rows.
    """
    shared = _shared_lengths(trunk, rows)
    if by_sequence is None:
        by_sequence = width is not None and computes_by_sequence(trunk, shared.device)
    if by_sequence:
        packed, sequences = lay_end_to_end(rows.input_ids, rows.lengths, shared)
        inputs: dict[str, Any] = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
        }
        # A mask that is there already, so that transformers makes none; nothing reads it.
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=shared.device)
        return module(**inputs, sequences=sequences, use_cache=False), packed.flat_index
    packed = pack_rows(rows.input_ids, rows.lengths, shared, width)
    inputs = {"input_ids": packed.input_ids}
    if width is not None:
        # Without a shared prompt there is no mask: packed rows are told apart by their restarting
        # positions. Padded rows need neither: a causal model never sees right-padding, and some
        # architectures take no positions.
        inputs["position_ids"] = packed.position_ids
        inputs["attention_mask"] = _mask_for(trunk, packed.attention_mask)
    return module(**inputs, use_cache=False), packed.flat_index


def computes_by_sequence(trunk: nn.Module, device: torch.device) -> bool:
    """Tell whether packed rows are computed without a mask, see `sequence_attention`.

    Its kernel is one for 16 bits.
    """
    model = without_adapter_wrapper(trunk)
    if attention_of(model) != SEQUENCE_ATTENTION or device.type != "cuda":
        return False
    is_cast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_cast else model.dtype
    return dtype in {torch.bfloat16, torch.float16}


def _shared_lengths(trunk: nn.Module, rows: TokenRows) -> Tensor:
    """Return how many tokens of each row may be shared: its prompt, `[B]`, or nothing.

    Our mask replaces the architecture's own. It cannot where the attention takes none (flash
    attention), and would hide nothing of a prompt that a sliding window (Mistral, Gemma) does not
    reach.
    """
    first_response = rows.response_mask.int().argmax(1)  # 0 where nothing is marked
    model = without_adapter_wrapper(trunk)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    is_beyond = window is not None and rows.input_ids.shape[1] > window
    if is_beyond or not attention_of(model).startswith(_TAKING_A_MASK):
        return torch.zeros_like(first_response)
    return first_response


def _mask_for(trunk: nn.Module, mask: Tensor | None) -> Tensor | None:
    # transformers' plain attention adds its mask to the scores, the others select by it.
    inner = without_adapter_wrapper(trunk)
    if mask is None or attention_of(inner) != "eager":
        return mask
    lowest = torch.finfo(inner.dtype).min
    return torch.zeros(mask.shape, dtype=inner.dtype, device=mask.device).masked_fill(~mask, lowest)


def apply_lora(model: PreTrainedModel, lora: LoRAConfig) -> PeftModel:
    """Wrap a model so that only low-rank adapters train; the output starts unchanged.

    Raises:
        ConfigError: a target module does not exist, or is the output projection.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int; any number is taken
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        # GPT-2's Conv1D is a linear layer with its weight transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {error}") from error
    _refuse_output_adapter(adapted)
    return adapted


def _refuse_output_adapter(adapted: PeftModel) -> None:
    # `vocabulary_of` reads the projection as one matrix; an adapter beside it would be passed over.
    output = without_adapter_wrapper(adapted).get_output_embeddings()
    for name, module in adapted.named_modules():
        is_output = isinstance(module, BaseTunerLayer) and output is not None
        if is_output and module.get_base_layer().weight is output.weight:
            raise ConfigError(
                f"lora.target_modules: {name} is the output projection, or tied to it, and cannot "
                "have an adapter; leave it out ('all-linear' does)"
            )


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Let the base model speak: the reference policy of a LoRA run."""
    if not isinstance(model, PeftModel):
        raise ConfigError("the reference is the adapter switched off, but there is no adapter")
    with model.disable_adapter():
        yield


def zero_dropout(config: PretrainedConfig) -> None:
    """Set every dropout rate of a configuration to zero, in place.

    With dropout the same tokens have other log-probabilities at each forward, and PPO's ratio is
    not one before the first step (`eval()` is not enough: the Trainer calls `train()`).
    """
    for name, value in config.to_dict().items():
        is_rate = name.endswith(_DROPOUT_NAMES)
        if is_rate and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def forget_padding_token(model: nn.Module) -> None:
    """Let every row of the embeddings learn, in place.

    transformers makes the padding token's row one without gradient. Where a model pads by EOS, as
    many do, that would be EOS: the very token from which a reward model reads its score.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """Find the stack of transformer layers: the `ModuleList` that holds the most parameters.

    Architectures call it `layers`, `h` or `blocks`, and wrappers put it at different depths; its
    weight in the model is what they have in common.

    Raises:
        ConfigError: if the model has no `ModuleList` with parameters.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    largest = max(lists, key=_num_parameters, default=None)
    if largest is None or _num_parameters(largest) == 0:
        raise ConfigError(
            f"{type(model).__name__} has no list of layers, which trainer.strategy fsdp2 and "
            "model.activation_checkpointing need: use a transformers model, or neither of them"
        )
    return largest


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
