"""A word-level tokenizer with BOS, and padding apart from EOS: the counterpart of tests/support's.

It treats special tokens as Llama 2's does: BOS before every text by default, and a chat template
that writes BOS itself and has no opening for the assistant's turn.
"""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
PAD, UNKNOWN, BOS, EOS = range(4)
WORDS = ["one", "two", "three", "four", "yes", "no", "[INST]", "[/INST]"]

BOS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no role ' + message['role']) }}{% endif %}{% endfor %}"
)
# Ends turns with words of its own, never with EOS.
NO_EOS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' END\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Renders earlier turns otherwise than the last one.
SHIFTING_TEMPLATE = (
    "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
)


def word_tokenizer(*, single="<s> $A", chat_template=BOS_TEMPLATE, **special_tokens):
    """Return the tokenizer; `single` says what stands around a text by default."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **special_tokens})
    tokenizer.chat_template = chat_template
    return tokenizer


def ids(text):
    """Return the ids of words and special tokens in `text`."""
    vocabulary = [*SPECIAL, *WORDS]
    return [vocabulary.index(word) if word in vocabulary else UNKNOWN for word in text.split()]
