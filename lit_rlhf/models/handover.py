"""How models pass from phase to phase and to other tools: folders that `from_pretrained` loads.

A policy's folder is a causal language model with its tokenizer and chat template. A reward
model's is a sequence classifier with one label, whose logit is the raw score; the moments that
normalise it are in `config.json` under `lit_rlhf_normalizer`. With LoRA a folder is what peft
writes: adapters, and the name of the model under them. A hub name is read like a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import LARGE_INTEGER

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.backbone import forget_padding_token, trunk_of, zero_dropout
from lit_rlhf.models.classifiers import HEAD, ensure_classifier
from lit_rlhf.models.scalar_head import ScalarModel

# What a run leaves in its folder: the model it ends with, and the best at a validation.
MODEL_FOLDER = "model"
BEST_FOLDER = "best"
NORMALIZER_KEY = "lit_rlhf_normalizer"
CLASSIFICATION = "SEQ_CLS"  # peft's task type of a reward model
ModelKind = Literal["policy", "reward"]

_ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = (".safetensors", ".bin")
_CHANGING_ROTATIONS = ("dynamic", "longrope")
_NUMBER = re.compile(r"\b\d+\b")


def resolve_source(source: object) -> str:
    """Expand `~`; refuse a local path that does not exist, before transformers asks a hub.

    Raises:
        CheckpointError: it looks like a path and nothing is there; it is a checkpoint; or nothing
            was given, or nothing that names a model.
    """
    if not isinstance(source, (str, Path)):
        raise CheckpointError(
            f"a hub name or a Hugging Face folder is needed here, not {type(source).__name__}"
        )
    source = str(source)
    if not source:
        raise CheckpointError("no model given: name a hub model or a Hugging Face folder")
    path = Path(source).expanduser()
    if source.endswith(".ckpt"):
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        folder = run / (BEST_FOLDER if path.stem.startswith(BEST_FOLDER) else MODEL_FOLDER)
        raise CheckpointError(
            f"{source}: a checkpoint only continues its own run (--ckpt_path) and is not a model; "
            f"name the model folder that the run leaves: {folder}"
        )
    looks_local = source.startswith(("/", "~", "./", "../"))
    if path.exists():
        return str(path)
    if looks_local or source.count("/") > 1:
        raise CheckpointError(f"{source}: no such model folder")
    return source


def is_adapter(source: str) -> bool:
    """Tell a folder of adapters, as peft writes it, from a whole model."""
    return Path(source).expanduser().joinpath(_ADAPTER_CONFIG).is_file()


def check_kind(source: str, kind: ModelKind) -> None:
    """Refuse a model that is not there or of the other kind, before its weights are read.

    Raises:
        CheckpointError: that is so.
    """
    path = resolve_source(source)
    if is_adapter(path):
        is_reward = _adapter_config(path).task_type == CLASSIFICATION
        found = "an adapter"
    else:
        names = _read_config(path).architectures or []
        is_reward = any(name.endswith("ForSequenceClassification") for name in names)
        found = str(names)
    if is_reward and kind == "policy":
        raise CheckpointError(f"{source}: a policy is needed here, but this is a reward model")
    if not is_reward and kind == "reward":
        raise CheckpointError(f"{source}: a reward model is needed here, but this is {found}")


def check_model(source: str, kind: ModelKind) -> None:
    """Refuse what `check_kind` does, and a folder without weights.

    Raises:
        CheckpointError: that is so.
    """
    check_kind(source, kind)
    path = Path(resolve_source(source))
    if path.is_dir() and not any(file.suffix in _WEIGHTS for file in path.iterdir()):
        raise CheckpointError(
            f"{source}: this folder has no weights; train or copy the model again"
        )


def load_tokenizer(source: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub model or a Hugging Face folder; return one that is there.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    path = resolve_source(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CheckpointError(f"{source}: no tokenizer could be loaded ({error})") from error
    return tokenizer


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


def context_length(source: str | PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens a model can read, or None where it does not say.

    Args:
        source: hub model or Hugging Face folder (that may hold a tokenizer alone), or a tokenizer.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        length = source.model_max_length
        return length if length < LARGE_INTEGER else None
    path = resolve_source(source)
    if is_adapter(path):
        path = _base_of(path)
    elif Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return None
    return context_of(_read_config(path))


def context_of(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model of this configuration can read, None where it does not say."""
    text_config = config.get_text_config()
    length = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(length, int):
        return None
    # YaRN and its like reach further than the positions that the model was trained on.
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = rope.get("factor", 1.0) if isinstance(rope, dict) else 1.0
    return int(length * max(1.0, float(factor or 1.0)))


def first_context_length(source: str) -> int | None:
    """Return the tokens from which on a longer row is rotated otherwise, whole: dynamic RoPE.

    Args:
        source: hub model or Hugging Face folder.

    Returns:
        None where rotations do not depend on the length of a row.
    """
    config = config_of(source).get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if not isinstance(rope, dict) or rope.get("rope_type") not in _CHANGING_ROTATIONS:
        return None
    name = "original_max_position_embeddings"
    first = rope.get(name) or getattr(config, name, None) or config.max_position_embeddings
    return int(first)


def config_of(source: str) -> PretrainedConfig:
    """Read the configuration of a model; of adapters, that of the model under them.

    Raises:
        CheckpointError: there is none.
    """
    path = resolve_source(source)
    return _read_config(_base_of(path) if is_adapter(path) else path)


def load_causal_lm(source: str, *, keeps_halves: bool = False) -> PreTrainedModel:
    """Load a policy in float32: hub name or Hugging Face folder.

    Adapters are merged, so that a phase starts from plain weights.

    Args:
        source: the folder or hub name.
        keeps_halves: leave weights that are stored in 16 bits as they are, which takes half the
            memory. Buffers are float32 in any case.

    Raises:
        CheckpointError: missing, torn, or a reward model.
    """
    path = resolve_source(source)
    check_kind(source, "policy")
    if is_adapter(path):
        return merge_adapters(_load_adapter(load_causal_lm(_base_of(path)), path))
    config = _read_config(path)
    return _from_pretrained(AutoModelForCausalLM, path, config, keeps_halves=keeps_halves)


def load_trunk(source: str, *, keeps_halves: bool = False) -> PreTrainedModel:
    """Load the transformer of a policy without its vocabulary: where a reward model starts."""
    return trunk_of(load_causal_lm(source, keeps_halves=keeps_halves))


def load_reward_model(
    source: str, *, merge: bool = True, keeps_halves: bool = False
) -> ScalarModel:
    """Load a reward model: a sequence classifier with one label and a linear head `score`.

    Args:
        source: the folder or hub name.
        merge: add adapters to the weights under them; False keeps the two apart.
        keeps_halves: as for `load_causal_lm`; the head is float32 in any case.

    Raises:
        CheckpointError: missing, torn, a policy, or with more than one output.
    """
    path = resolve_source(source)
    check_kind(source, "reward")
    if is_adapter(path):
        base = _base_of(path)
        config = _read_config(base)
        config.num_labels = 1
        ensure_classifier(config)
        is_saved = HEAD in (_adapter_config(path).modules_to_save or [])
        without = {f"{HEAD}.weight", f"{HEAD}.bias"} if is_saved else set()
        plain = _from_pretrained(AutoModelForSequenceClassification, base, config, without=without)
        adapted = _load_adapter(plain, path)
        model = merge_adapters(adapted) if merge else adapted.get_base_model()
    else:
        config = _read_config(path)
        if config.num_labels != 1:
            raise CheckpointError(f"{path}: a reward model has one output, not {config.num_labels}")
        ensure_classifier(config)
        auto_class = AutoModelForSequenceClassification
        model = _from_pretrained(auto_class, path, config, keeps_halves=keeps_halves)
    head = getattr(model, HEAD, None)
    if isinstance(head, ModulesToSaveWrapper):
        head = head.modules_to_save[head.active_adapters[0]]
    if not isinstance(head, nn.Linear):
        raise CheckpointError(f"{path}: {config.model_type} has no linear head named '{HEAD}'")
    trunk = model.base_model
    assert isinstance(trunk, nn.Module)
    scalar = ScalarModel(trunk, bias=head.bias is not None)
    scalar.head.linear.load_state_dict(head.state_dict())
    if (moments := _read_normalizer(path, config)) is not None:
        scalar.set_normalizer(moments["mean"], moments["deviation"])
    return scalar


def attention_for(config: PretrainedConfig) -> str:
    """Name the attention implementation: torch's, or eager where attention logits are capped."""
    text_config = config.get_text_config()
    has_softcap = getattr(text_config, "attn_logit_softcapping", None) is not None
    return "eager" if has_softcap else "sdpa"


def _read_config(path: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no model could be loaded ({error})") from error
    return config


def _read_normalizer(path: str, config: PretrainedConfig) -> dict[str, float] | None:
    if not is_adapter(path):
        moments: dict[str, float] | None = getattr(config, NORMALIZER_KEY, None)
        return moments
    file = Path(path) / "config.json"  # of the adapter's own folder; a foreign one has none
    return json.loads(file.read_text()).get(NORMALIZER_KEY) if file.is_file() else None


def _from_pretrained(
    auto_class: Any,  # noqa: ANN401  (transformers' factories have no common type)
    path: str,
    config: PretrainedConfig,
    *,
    without: set[str] | frozenset[str] = frozenset(),
    keeps_halves: bool = False,
) -> PreTrainedModel:
    """Load a model without dropout, all of its weights but those named `without`."""
    zero_dropout(config)
    model: PreTrainedModel
    try:
        dtype: torch.dtype | Literal["auto"] = "auto" if keeps_halves else torch.float32
        model, report = _with_attention(auto_class, path, config, dtype)
        floats = {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()}
        if keeps_halves and not floats <= {torch.float32}:
            # Numbers beside the weights that were rounded, too, cannot be had back.
            model, report = _with_attention(auto_class, path, config, torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no model could be loaded ({error})") from error
    if missing := sorted(set(report["missing_keys"]) - without):
        # transformers would go on with random numbers in their place.
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, such as {missing[:3]}")
    if further := _further_layers(report["unexpected_keys"], model):
        raise CheckpointError(
            f"{path}: config.json names fewer layers than there are weights of: "
            f"{len(further)} have no place, such as {further[:3]}"
        )
    forget_padding_token(model)
    return model


def _further_layers(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Return the weights without a place that differ from one with a place by a number alone."""
    known = {_NUMBER.sub("#", name) for name in model.state_dict()}
    return sorted(name for name in names if "." in name and _NUMBER.sub("#", name) in known)


def _with_attention(
    auto_class: Any,  # noqa: ANN401  (as above)
    path: str,
    config: PretrainedConfig,
    dtype: torch.dtype | Literal["auto"],
) -> Any:  # noqa: ANN401
    """Load with the attention of our choice, or eagerly where the architecture knows no other."""
    for attention in (attention_for(config), "eager"):
        try:
            return auto_class.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except ValueError as error:
            if str(error).startswith("Unrecognized configuration class"):
                kind = (
                    "causal language model" if auto_class is AutoModelForCausalLM else "classifier"
                )
                raise CheckpointError(
                    f"{path}: transformers has no {kind} of {config.model_type}, so that it "
                    "cannot be used here"
                ) from error
            if attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise
    raise AssertionError("the loop returns or raises")


def _adapter_config(path: str) -> LoraConfig:
    try:
        config = PeftConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}/{_ADAPTER_CONFIG}: cannot be read ({error})") from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{path}: only LoRA adapters can be read, not {config.peft_type}")
    return config


def _base_of(path: str) -> str:
    base = _adapter_config(path).base_model_name_or_path
    if not base:
        raise CheckpointError(f"{path}/{_ADAPTER_CONFIG}: names no base_model_name_or_path")
    if is_adapter(base):
        raise CheckpointError(
            f"{path}: the model under these adapters, {base}, is a folder of adapters itself; "
            "merge that one first, and name the merged model as base_model_name_or_path"
        )
    try:
        return resolve_source(base)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: the model under its adapters: {error}") from error


def _load_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    try:
        weights = load_peft_weights(path, device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: its adapters cannot be read ({error})") from error
    return adapt(model, _adapter_config(path), weights, path)


def adapt(
    model: PreTrainedModel, config: LoraConfig, weights: dict[str, Tensor], path: str
) -> PeftModel:
    """Put adapters with these weights on a model.

    Args:
        model: changed in place.
        config: of the adapters.
        weights: by the names that peft writes them under.
        path: where they are from, for messages.

    Raises:
        CheckpointError: they do not fit the model.
    """
    try:
        adapted = get_peft_model(model, config)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        set_peft_model_state_dict(adapted, weights)
    except (ValueError, RuntimeError) as error:  # modules or shapes that differ
        raise CheckpointError(f"{path}: the adapters do not fit the model ({error})") from error
    if odd := sorted(expected ^ weights.keys()):
        raise CheckpointError(
            f"{path}: the adapters do not fit the model; missing or unexpected: {odd[:3]}"
        )
    assert isinstance(adapted, PeftModel)
    return adapted


def merge_adapters(adapted: PeftModel) -> PreTrainedModel:
    """Add adapters to the weights under them, all of which may train from then on."""
    merged = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    # peft froze the base for the adapters' training; the next phase may train all of it.
    merged.requires_grad_(True)
    return merged
