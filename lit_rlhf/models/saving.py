"""Writes what was trained as folders that `from_pretrained` loads, see `handover`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.classifiers import HEAD, ensure_classifier
from lit_rlhf.models.handover import (
    CLASSIFICATION,
    NORMALIZER_KEY,
    adapt,
    is_adapter,
    load_causal_lm,
    load_trunk,
    merge_adapters,
    resolve_source,
)
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.whole_files import written_whole

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTED = "base_model.model."  # peft's prefix of every name


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write a model to, which then takes the place of `folder`.

    Raises:
        CheckpointError: the disk is full or cannot be written to; an older folder is kept.
    """
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # transformers shows one for its files
    try:
        with written_whole(folder) as partial:
            partial.mkdir()
            yield partial
    except (OSError, SafetensorError) as error:
        kept = "; the older one is kept" if folder.exists() else ""
        raise CheckpointError(
            f"{folder}: the model could not be written ({error}){kept}"
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()


def save_policy(
    policy: PolicyModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base: str,
    merge: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a policy as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        policy: its value head, if any, stays behind.
        tokenizer: written with it.
        folder: exists, and is empty.
        base: the model under the adapters.
        merge: write adapters merged into `base`; False writes the folder that peft does. Where
            `base` is a folder of adapters itself they are merged in any case: no folder holds
            the weights under the new ones.
        weights: of the model by their names, where they are not its own (gathered shards).
    """
    model: nn.Module = policy.model
    weights = _part(weights or policy.state_dict(), "model.")
    tokenizer.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(folder, state_dict=weights)
        return
    config, adapter = _adapter_of(model, weights)
    if merge or is_adapter(base):
        # The weights under the adapters may be rounded in the run; those of the folder are not.
        merge_adapters(adapt(load_causal_lm(base), config, adapter, base)).save_pretrained(folder)
        return
    config.task_type = "CAUSAL_LM"
    _write_adapter(config, adapter, folder, base)


def save_reward_model(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base: str,
    merge: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a reward model as `AutoModelForSequenceClassification.from_pretrained` loads it.

    The arguments are those of `save_policy`.

    Raises:
        CheckpointError: see `as_classifier`.
    """
    weights = weights or model.state_dict()
    classifier, tokenizer = as_classifier(model, tokenizer)
    tokenizer.save_pretrained(folder)
    trunk, head = _part(weights, "backbone."), _part(weights, "head.linear.", f"{HEAD}.")
    moments = {name: float(weights[name]) for name in ("mean", "deviation")}
    setattr(classifier.config, NORMALIZER_KEY, moments)
    own_name = f"{classifier.base_model_prefix}."
    if isinstance(model.backbone, PeftModel):
        config, adapter = _adapter_of(model.backbone, trunk)
        if not merge and not is_adapter(base):
            targets = model.backbone.get_base_model().named_modules()
            config.target_modules = [
                own_name + name
                for name, module in targets
                # Experts, whose weights lie in one, are named by config.target_parameters.
                if isinstance(module, BaseTunerLayer) and not isinstance(module, ParamWrapper)
            ]
            config.task_type, config.modules_to_save = CLASSIFICATION, [HEAD]
            adapter = _part(adapter, _ADAPTED, _ADAPTED + own_name) | _part(head, "", _ADAPTED)
            classifier.config.architectures = [type(classifier).__name__]
            classifier.config.save_pretrained(folder)
            _write_adapter(config, adapter, folder, base)
            return
        trunk = merge_adapters(adapt(load_trunk(base), config, adapter, base)).state_dict()
        nn.Module.to(classifier, torch.float32)
    classifier.save_pretrained(folder, state_dict=_part(trunk, "", own_name) | head)


def as_classifier(
    model: ScalarModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the classifier that a reward model becomes, without weights, and its tokenizer.

    Call it before training: what cannot be saved need not be trained.

    Raises:
        CheckpointError: the architecture has no classifier with a linear head, or the tokenizer
            has no token to pad with.
    """
    config = copy.deepcopy(model.transformers_config)
    tokenizer = copy.deepcopy(tokenizer)
    config.num_labels = 1
    # transformers reads the score at the last token that is not pad: were pad the EOS that closes
    # a response, it would read one token too early.
    config.pad_token_id = _pad_apart_from_eos(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    # Learned positions (GPT-2) count from the row's first column, padding or not.
    tokenizer.padding_side = "right"
    ensure_classifier(config)
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise CheckpointError(f"transformers has no classifier of {config.model_type}") from error
    if not isinstance(getattr(classifier, HEAD, None), nn.Linear):
        raise CheckpointError(f"{config.model_type} has no classifier with a head named '{HEAD}'")
    # On meta: this sets what the configuration says of the weights.
    nn.Module.to(classifier, next(model.backbone.parameters()).dtype)
    return classifier, tokenizer


def _pad_apart_from_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return int(tokenizer.pad_token_id)
    for token_id in (tokenizer.unk_token_id, *tokenizer.all_special_ids):
        if token_id is not None and token_id != tokenizer.eos_token_id:
            return int(token_id)
    raise CheckpointError(
        "the tokenizer has no special token besides EOS that could be the pad token; "
        "add one (tokenizer.add_special_tokens) before training"
    )


def _part(weights: Mapping[str, Tensor], prefix: str, other: str = "") -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, with another one in its place."""
    return {
        other + name[len(prefix) :]: own for name, own in weights.items() if name.startswith(prefix)
    }


def _adapter_of(
    model: PeftModel, weights: dict[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    assert isinstance(config, LoraConfig)
    adapter = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    return config, adapter


def _write_adapter(config: LoraConfig, adapter: dict[str, Tensor], folder: Path, base: str) -> None:
    path = Path(resolve_source(base))
    # Absolute, so that the folder can be read from elsewhere.
    config.base_model_name_or_path = str(path.absolute()) if path.is_dir() else base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {name: own.detach().cpu().contiguous() for name, own in adapter.items()}
    save_file(tensors, folder / _ADAPTER_WEIGHTS, metadata={"format": "pt"})


def load_saved_weights(policy: PolicyModel, folder: Path) -> None:
    """Put the weights of a folder that `save_policy` wrote back into the policy.

    Args:
        policy: changed in place.
        folder: of the same model, adapters not merged.

    Raises:
        CheckpointError: the folder is not there or holds something else.
    """
    model: nn.Module = policy.model
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(load_causal_lm(str(folder)).state_dict())
