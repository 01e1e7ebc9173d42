"""The tokenizer of a module's model, which must write the ids that its data were tokenised with."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.handover import load_tokenizer


def tokenizer_beside(data: object, source: str, option: str) -> PreTrainedTokenizerBase:
    """Return the data module's tokenizer where it is the model's, or was given; else load it.

    Args:
        data: the Trainer's data module, of any kind, or None.
        source: of the model's tokenizer; "" where the model says nothing of it.
        option: that names the model, for messages.

    Raises:
        ConfigError: there is none, or the data have another one's token ids.
        CheckpointError: it cannot be loaded.
    """
    ours = data if isinstance(data, TextDataModule) else None
    if ours is not None and ours.shares_tokenizer(source):
        return ours.tokenizer
    if not source:
        raise ConfigError(
            f"{option}: the model says nothing of its tokenizer; give one to the data module, or "
            "set the module's `tokenizer`"
        )
    tokenizer = load_tokenizer(source)
    if ours is not None and ours.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"data.tokenizer {ours.tokenizer_source} writes other token ids than that of {option}, "
            f"{source}: give both the same"
        )
    return tokenizer
