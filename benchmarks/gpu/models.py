"""Random models of real shapes, made on the device, and rows for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.models.policy import PolicyModel

_WIDTH = 256


@dataclass(frozen=True)
class Shape:
    """Qwen2's architecture at some size."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def config(self) -> Qwen2Config:
        """Its configuration."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=0,
        )

    def save(self, folder: Path) -> None:
        """Write a random model in bf16, as models on the hub are, and a tokenizer."""
        from benchmarks.dry_run import word_tokenizer  # noqa: PLC0415 - here alone

        model = AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)


_TINY = Shape(64, 128, 2, 4, 2, 256)
_SHAPES = {
    ("cuda", "large"): Shape(1536, 8960, 28, 12, 2, 151_936),  # Qwen2.5-1.5B
    ("cuda", "small"): Shape(896, 4864, 24, 14, 2, 151_936),  # Qwen2.5-0.5B
}


def shape_for(device: str, size: str) -> Shape:
    """Return a real shape on a GPU, a tiny one elsewhere."""
    return _SHAPES.get((device, size), _TINY)


def random_policy(shape: Shape, device: str, packing_width: int | None = _WIDTH) -> PolicyModel:
    """Return a policy with random weights on the device."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            shape.config, dtype=torch.float32, attn_implementation="sdpa"
        )
        return PolicyModel(model, packing_width=packing_width)


def random_rows(device: str, num_rows: int) -> TokenRows:
    """Return rows of different lengths, of which every two share a prompt."""
    longest = 64 if device == "cuda" else 12
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, longest, (num_rows // 2,), generator=draw).repeat_interleave(2)
    lengths = prompts + torch.randint(1, longest, (num_rows,), generator=draw)
    ids = torch.randint(2, 200, (num_rows // 2, int(lengths.max())), generator=draw)
    ids = ids.repeat_interleave(2, 0)
    columns = torch.arange(ids.shape[1])
    own = columns >= prompts[:, None]
    ids = torch.where(own, torch.randint(2, 200, ids.shape, generator=draw), ids)
    mask = own & (columns < lengths[:, None])
    return TokenRows(ids, lengths, mask).to(device)


def prompt_batch(device: str, num_rows: int, longest: int, vocabulary: int) -> PromptBatch:
    """Return random prompts of different lengths."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(longest // 2, longest + 1, (num_rows,), generator=draw)
    ids = torch.randint(2, vocabulary, (num_rows, longest), generator=draw)
    numbers = torch.arange(num_rows)
    return PromptBatch(ids, lengths, numbers, [""] * num_rows, [{}] * num_rows).to(device)
