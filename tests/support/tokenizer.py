"""A tiny fast tokenizer, made in memory: one token a character, and pad equal to EOS.

Byte-level like those of SmolLM2, GPT-2 and Qwen2, without merges. Pad equals EOS as in SmolLM2:
the case in which a padded EOS is easily masked out of a loss.
"""

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

UNKNOWN = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"

# Ġ and Ċ: what byte-level tokenizers write for a space and a line break.
_ALPHABET = [*string.ascii_lowercase, *string.digits, *string.ascii_uppercase, *".,!?'-:ĠĊ"]

# The shape of SmolLM2's own template, without its default system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 74 tokens with a chat template; other characters become `unk`."""
    vocabulary = {token: index for index, token in enumerate([UNKNOWN, START, END, *_ALPHABET])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_tokenizer(folder: Path) -> Path:
    """Write the tokenizer's files into `folder` and return it."""
    tiny_tokenizer().save_pretrained(folder)
    return folder
