"""Random two-layer language models of four architectures, each made in some milliseconds.

They differ where code that handles "any causal language model" tends to break: tied embeddings,
learned positions (GPT-2), biases (Qwen2), a soft-capped output and odd attention sizes (Gemma 2).
"""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from tests.support.tokenizer import save_tiny_tokenizer, tiny_tokenizer

VOCABULARY_SIZE = 96  # more than the tokenizer has: real models pad their vocabulary, too
_SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def llama_config(**changes) -> PretrainedConfig:
    """SmolLM2's architecture."""
    return LlamaConfig(**_SHAPE | _special_tokens() | changes)


def qwen2_config(**changes) -> PretrainedConfig:
    """Biases on queries, keys and values."""
    return Qwen2Config(**_SHAPE | _special_tokens() | changes)


def gemma2_config(**changes) -> PretrainedConfig:
    """Logits soft-capped, heads of their own width, every other layer with a sliding window."""
    own = {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16}
    return Gemma2Config(**_SHAPE | own | _special_tokens() | changes)


def gpt2_config(**changes) -> PretrainedConfig:
    """Learned positions, convolution layers for linear ones, dropout on by default."""
    shape = {"vocab_size": VOCABULARY_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2Config(**shape | {"n_positions": 128} | _special_tokens() | changes)


CONFIGS = {
    "llama": llama_config,
    "gpt2": gpt2_config,
    "qwen2": qwen2_config,
    "gemma2": gemma2_config,
}


def tiny_model(architecture: str = "llama", *, seed: int = 0, **changes) -> PreTrainedModel:
    """Return a random float32 model of one of `CONFIGS`, the same for the same seed.

    Args:
        architecture: a key of `CONFIGS`.
        seed: of the weights; the caller's random state is left as it was.
        **changes: fields of the configuration that differ.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CONFIGS[architecture](**changes)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_tiny_policy(folder: Path, architecture: str = "llama", **changes) -> Path:
    """Write a random model and the tiny tokenizer into `folder`, as a policy that a user brings."""
    tiny_model(architecture, **changes).save_pretrained(folder)
    return save_tiny_tokenizer(folder)


def _special_tokens() -> dict[str, int | None]:
    tokenizer = tiny_tokenizer()
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
