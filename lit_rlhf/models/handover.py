"""How models pass from phase to phase: hub names, Hugging Face folders, Lightning checkpoints.

What a checkpoint carries beside the weights stands in its card, see `models.card`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_rlhf.cpu.attention import ATTENTION_NAME
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.backbone import LoRAConfig, apply_lora, forget_padding_token, zero_dropout
from lit_rlhf.models.card import (
    is_checkpoint,
    parse_config,
    read_card,
    read_checkpoint,
    resolve_source,
)
from lit_rlhf.models.scalar_head import ScalarModel

# The normaliser of an exported reward model stands in its config.json under this key.
NORMALIZER_KEY = "lit_rlhf_normalizer"
POLICY_PREFIX = "policy.model."
REWARD_PREFIX = "reward_model."


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub model, a Hugging Face folder or a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    path = resolve_source(source)
    if not is_checkpoint(path):
        return _tokenizer_from_folder(path, source)
    card = read_card(path)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in card.tokenizer.items():
            # Only a plain file name: a path in a foreign checkpoint must not leave the folder.
            if name in {"", ".."} or name != Path(name).name:
                raise CheckpointError(f"{source}: '{name}' is no name for a tokenizer's file")
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return _tokenizer_from_folder(folder, source)


def require_fitting_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, source: str
) -> None:
    """Refuse a tokenizer with tokens that a model has no embedding for.

    Args:
        tokenizer: of the texts.
        config: of the model that will read their tokens.
        source: where the tokenizer came from, for the message.

    Raises:
        CheckpointError: it does not fit.
    """
    largest = max(tokenizer.get_vocab().values(), default=0)
    num_embeddings = config.get_text_config().vocab_size
    if largest >= num_embeddings:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {largest}, but the model has only "
            f"{num_embeddings} embeddings: put the model's own tokenizer into its folder, or "
            "resize the model's embeddings to the tokenizer"
        )


def context_length(source: str) -> int | None:
    """Return how many tokens a model can look at, or None where it does not say.

    Args:
        source: hub model, Hugging Face folder (that may hold a tokenizer alone) or checkpoint.
    """
    path = resolve_source(source)
    if is_checkpoint(path):
        config = parse_config(read_card(path).config)
    elif Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return None
    else:
        config = _read_config(path)
    text_config = config.get_text_config()
    length = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(length, int):
        return None
    # YaRN and its like reach further than the positions that the model was trained on.
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = rope.get("factor", 1.0) if isinstance(rope, dict) else 1.0
    return int(length * max(1.0, float(factor or 1.0)))


def load_causal_lm(source: str) -> PreTrainedModel:
    """Load a policy in float32: hub name, Hugging Face folder or policy checkpoint.

    Adapters in a checkpoint are merged, so that a phase starts from plain weights.

    Raises:
        CheckpointError: missing, torn, or a reward model.
    """
    path = resolve_source(source)
    if not is_checkpoint(path):
        config = _read_config(path)
        if _is_classifier(config):
            raise CheckpointError(f"{source}: a policy is needed here, but this is a reward model")
        return _from_pretrained(AutoModelForCausalLM, path, config)
    card, state = read_checkpoint(path, kind="policy")
    weights = {
        name.removeprefix(POLICY_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(POLICY_PREFIX)
    }
    if card.lora is not None:
        return _merge(_adapt(load_causal_lm(card.base), card.lora, weights, source))
    model_class = _causal_class(parse_config(card.config))
    return _build(model_class, card.config, weights, source)


def load_trunk(source: str) -> PreTrainedModel:
    """Load the transformer of a policy without its vocabulary: where a reward model starts."""
    trunk = load_causal_lm(source).base_model
    assert isinstance(trunk, PreTrainedModel)
    return trunk


def load_reward_model(source: str, *, merge: bool = True) -> ScalarModel:
    """Load a reward model: a reward checkpoint, or a sequence-classification folder.

    Args:
        source: the checkpoint or folder.
        merge: add a checkpoint's adapter to the weights under it; False keeps the two apart.

    Raises:
        CheckpointError: it is a policy, or has more than one output.
    """
    path = resolve_source(source)
    if not is_checkpoint(path):
        return _scalar_from_folder(path)
    card, state = read_checkpoint(path, kind="reward")
    weights = {
        name.removeprefix(REWARD_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(REWARD_PREFIX)
    }
    trunk = {
        name.removeprefix("backbone."): tensor
        for name, tensor in weights.items()
        if name.startswith("backbone.")
    }
    if card.lora is not None:
        adapted = _adapt(load_trunk(card.base), card.lora, trunk, source)
        backbone: nn.Module = _merge(adapted) if merge else adapted
    else:
        config = parse_config(card.config)
        backbone = _build(_trunk_class(config), card.config, trunk, source)
    model = ScalarModel(backbone)
    own = {name: value for name, value in weights.items() if not name.startswith("backbone.")}
    expected = {name for name in model.state_dict() if not name.startswith("backbone.")}
    if own.keys() != expected:
        raise CheckpointError(f"{source}: expected {sorted(expected)}, but found {sorted(own)}")
    model.load_state_dict(own, strict=False)
    return model


def attention_for(config: PretrainedConfig) -> str:
    """Name the attention implementation: ours, or eager where attention logits are capped."""
    text_config = config.get_text_config()
    has_softcap = getattr(text_config, "attn_logit_softcapping", None) is not None
    return "eager" if has_softcap else ATTENTION_NAME


def _tokenizer_from_folder(path: str, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CheckpointError(f"{source}: no tokenizer could be loaded ({error})") from error
    return tokenizer


def _read_config(path: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no model could be loaded ({error})") from error
    return config


def _is_classifier(config: PretrainedConfig) -> bool:
    names = config.architectures or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def _from_pretrained(
    auto_class: Any,  # noqa: ANN401  (transformers' factories have no common type)
    path: str,
    config: PretrainedConfig,
) -> PreTrainedModel:
    zero_dropout(config)
    model: PreTrainedModel
    try:
        model, report = auto_class.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention_for(config),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no model could be loaded ({error})") from error
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, such as {missing[:3]}")
    forget_padding_token(model)
    return model


def _build(
    model_class: type[PreTrainedModel], config_text: str, weights: dict[str, Tensor], source: str
) -> PreTrainedModel:
    config = parse_config(config_text)
    zero_dropout(config)
    config._attn_implementation = attention_for(config)
    model: PreTrainedModel = model_class(config).float()
    _load_strictly(model, weights, source)
    model.tie_weights()
    forget_padding_token(model)
    return model


def _load_strictly(model: PreTrainedModel, weights: dict[str, Tensor], source: str) -> None:
    result = _load_state(model, weights, source)
    # Only what this very configuration ties: untied, the same names are weights of their own.
    tied = model.all_tied_weights_keys
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{source}: weights do not fit the architecture; missing {missing[:3]}, "
            f"unexpected {result.unexpected_keys[:3]}"
        )


def _load_state(model: nn.Module, weights: dict[str, Tensor], source: str) -> _IncompatibleKeys:
    try:
        result: _IncompatibleKeys = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes that differ
        raise CheckpointError(f"{source}: weights do not fit the architecture ({error})") from error
    return result


def _adapt(
    base: PreTrainedModel, lora: dict[str, Any], weights: dict[str, Tensor], source: str
) -> PeftModel:
    adapted = apply_lora(base, LoRAConfig(**lora))
    expected = {name for name, value in adapted.named_parameters() if value.requires_grad}
    if missing := sorted(expected - weights.keys()):
        raise CheckpointError(f"{source}: the adapter lacks {missing[:3]}")
    if unexpected := _load_state(adapted, weights, source).unexpected_keys:
        raise CheckpointError(f"{source}: weights do not fit the adapter, such as {unexpected[:3]}")
    return adapted


def _merge(adapted: PeftModel) -> PreTrainedModel:
    merged = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    # peft froze the base for the adapters' training; the next phase may train all of it.
    merged.requires_grad_(True)
    return merged


def _causal_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    return _class_in_mapping(AutoModelForCausalLM, config)


def _trunk_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    return _class_in_mapping(AutoModel, config)


def _class_in_mapping(
    auto_class: Any,  # noqa: ANN401  (transformers' factories have no common type)
    config: PretrainedConfig,
) -> type[PreTrainedModel]:
    try:
        model_class: type[PreTrainedModel] = auto_class._model_mapping[type(config)]
    except KeyError as error:
        raise CheckpointError(f"transformers has no model for {config.model_type}") from error
    return model_class


def _scalar_from_folder(path: str) -> ScalarModel:
    config = _read_config(path)
    if not _is_classifier(config):
        raise CheckpointError(
            f"{path}: a reward model is needed here, but this is {config.architectures}"
        )
    if config.num_labels != 1:
        raise CheckpointError(f"{path}: a reward model has one output, not {config.num_labels}")
    model = _from_pretrained(AutoModelForSequenceClassification, path, config)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise CheckpointError(f"{path}: {config.model_type} has no linear head named 'score'")
    assert isinstance(model.base_model, nn.Module)
    scalar = ScalarModel(model.base_model, bias=head.bias is not None)
    scalar.head.linear.load_state_dict(head.state_dict())
    normalizer = getattr(config, NORMALIZER_KEY, None)
    if normalizer is not None:
        scalar.set_normalizer(normalizer["mean"], normalizer["deviation"])
    return scalar
