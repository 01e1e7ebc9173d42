"""Hugging Face folders out of checkpoints, for any tool that loads those."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.card import read_card
from lit_rlhf.models.handover import (
    NORMALIZER_KEY,
    _class_in_mapping,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
)
from lit_rlhf.models.scalar_head import ScalarModel


def export(checkpoint: str, folder: str) -> Path:
    """Write a checkpoint as a folder that transformers loads by itself.

    A policy becomes `AutoModelForCausalLM` (adapters merged), a reward model
    `AutoModelForSequenceClassification` with one label whose logit is the raw score; the moments
    that normalise it stand in `config.json` under `lit_rlhf_normalizer`.

    Args:
        checkpoint: a `.ckpt` file of a phase.
        folder: where to write; must not exist yet.

    Returns:
        The folder.

    Raises:
        CheckpointError: not a checkpoint of ours, or the folder exists.
    """
    target = Path(folder).expanduser()
    if target.exists():
        raise CheckpointError(f"{target} exists already: name a new folder or remove it first")
    card = read_card(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    # Written beside the target and renamed, so that a killed export leaves no half folder.
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if card.kind == "policy":
        load_causal_lm(checkpoint).save_pretrained(partial)
    else:
        _save_classifier(load_reward_model(checkpoint), tokenizer, partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, target)
    return target


def _save_classifier(model: ScalarModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    config = model.transformers_config
    config.num_labels = 1
    # transformers reads the score at the last token that is not pad: were pad the EOS that closes
    # a response, it would read one token too early.
    config.pad_token_id = _pad_apart_from_eos(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    # Learned positions (GPT-2) count from the row's first column, padding or not.
    tokenizer.padding_side = "right"
    setattr(
        config, NORMALIZER_KEY, {"mean": float(model.mean), "deviation": float(model.deviation)}
    )
    classifier = _class_in_mapping(AutoModelForSequenceClassification, config)(config)
    for part, own in (
        (classifier.base_model, model.backbone),
        (classifier.score, model.head.linear),
    ):
        assert isinstance(part, nn.Module)
        part.load_state_dict(own.state_dict())
    classifier.save_pretrained(folder)


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
