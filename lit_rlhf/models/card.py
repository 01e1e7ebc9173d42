"""What a phase's checkpoint says about the model in it.

A checkpoint is self-contained: beside the weights it carries the architecture's configuration,
the tokenizer's files, the adapter's shape and what it was made from (`ModelCard`), all as plain
types, so that reading one never executes pickled code (`weights_only=True`).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from lit_rlhf.checkpoints import read_verified
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.backbone import LoRAConfig

CARD_KEY = "lit_rlhf"


class ModelCard(NamedTuple):
    """What a checkpoint says about the model in it.

    Attributes:
        kind: "policy" or "reward".
        config: the architecture's configuration, as JSON.
        tokenizer: file name -> text of the tokenizer's files.
        lora: the fields of `LoRAConfig`, or None when all weights are in the checkpoint.
        base: where the weights under the adapter came from; read only when `lora` is set.
        lineage: what the model was made from, see `models.lineage`; None in checkpoints that
            were written before there was one.
    """

    kind: str
    config: str
    tokenizer: dict[str, str]
    lora: dict[str, Any] | None
    base: str
    lineage: dict[str, Any] | None = None


def is_checkpoint(source: str) -> bool:
    """Tell a Lightning checkpoint from a Hugging Face folder or hub name."""
    return source.endswith(".ckpt")


def resolve_source(source: str) -> str:
    """Expand `~`; refuse a local path that does not exist, before transformers asks a hub.

    Raises:
        CheckpointError: it looks like a path and nothing is there, or nothing was given.
    """
    if not source:
        raise CheckpointError("no model given: name a hub model, a folder or a .ckpt file")
    path = Path(source).expanduser()
    looks_local = source.startswith(("/", "~", "./", "../")) or is_checkpoint(source)
    if path.exists():
        return str(path)
    if looks_local or source.count("/") > 1:
        raise CheckpointError(f"{source}: no such model folder or checkpoint file")
    return source


def read_card(source: str, kind: str | None = None) -> ModelCard:
    """Read what a checkpoint says about its model, as `read_checkpoint` does, without weights."""
    return _card_of(_read(source, with_shards=False), source, kind)


def read_checkpoint(source: str, kind: str | None = None) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read a checkpoint that one of our phases wrote.

    Args:
        source: path of the `.ckpt` file, or of a folder of shards under such a name.
        kind: refuse a checkpoint of another kind ("policy" or "reward").

    Returns:
        Its card and its state dict (of a file: memory-mapped).

    Raises:
        CheckpointError: missing, torn, altered, foreign, or of another kind.
    """
    checkpoint = _read(source, with_shards=True)
    return _card_of(checkpoint, source, kind), checkpoint["state_dict"]


def _read(source: str, *, with_shards: bool) -> dict[str, Any]:
    path = Path(resolve_source(source))
    checkpoint = read_verified(path, with_shards=with_shards, map_location="cpu", mmap=True)
    expected = {CARD_KEY, "state_dict"} if with_shards else {CARD_KEY}
    if not isinstance(checkpoint, dict) or not expected <= checkpoint.keys():
        raise CheckpointError(f"{source}: not written by a lit_rlhf phase (no '{CARD_KEY}' entry)")
    return checkpoint


def _card_of(checkpoint: dict[str, Any], source: str, kind: str | None) -> ModelCard:
    try:
        card = ModelCard(**checkpoint[CARD_KEY])
    except TypeError as error:
        raise CheckpointError(
            f"{source}: its model card is of another version of lit_rlhf ({error})"
        ) from error
    if kind is not None and card.kind != kind:
        raise CheckpointError(
            f"{source}: holds a {card.kind} model, but a {kind} model is needed here"
        )
    return card


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the tokenizer's files as text, for a model card."""
    with tempfile.TemporaryDirectory() as folder:
        # Chat templates inside the configuration: as files they may lie in a folder of their own.
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        return {
            path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())
        }


def make_card(
    kind: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    lora: LoRAConfig | None,
    base: str,
    *,
    lineage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plain dictionary that a phase writes into its checkpoint as its model card."""
    card = ModelCard(
        kind=kind,
        config=json.dumps(config.to_dict(), default=str),
        tokenizer=tokenizer_files(tokenizer),
        lora=asdict(lora) if lora is not None else None,
        base=base,
        lineage=lineage,
    )
    return card._asdict()


def parse_config(text: str) -> PretrainedConfig:
    """Rebuild a transformers configuration from a model card's JSON."""
    values = json.loads(text)
    return AutoConfig.for_model(values.pop("model_type"), **values)
