"""Generation by transformers itself, for models whose cache is not one of keys and values alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput


def generate_by_transformers(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    num_tokens: int,
    use_cache: bool,
    processor: LogitsProcessor | None = None,
    criterion: StoppingCriteria | None = None,
) -> GenerateDecoderOnlyOutput:
    """Take the likeliest token at each step, of logits that `processor` may have changed.

    Nothing of the model's own generation configuration takes part: no penalty, no EOS.

    Args:
        model: a transformers causal language model, adapters in place.
        input_ids: `[B, P]` prompts, left-padded.
        attention_mask: `[B, P]`, 1 at real tokens.
        num_tokens: `T`, at most.
        use_cache: keep what each layer has computed; False computes whole rows at each step.
        processor: `(rows [B, P + t], logits [B, V]) -> logits [B, V]`.
        criterion: `(rows, logits) -> [B]` bool, True where a row has ended.

    Returns:
        What `generate` does, with the logits of each step: a tuple of `[B, V]`.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=num_tokens,
        pad_token_id=0,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=processor is None,
    )
    with _own_settings_aside(model):
        output = model.generate(  # type: ignore[operator]  # of a mixin that types leave out
            input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([] if processor is None else [processor]),
            stopping_criteria=StoppingCriteriaList([] if criterion is None else [criterion]),
        )
    assert isinstance(output, GenerateDecoderOnlyOutput)
    return output


@contextmanager
def _own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Let the model have no generation configuration: `generate` fills gaps from it."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def left_padded(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move right-padded rows to the right.

    Args:
        input_ids: `[B, P]`, right-padded.
        lengths: `[B]` real tokens.

    Returns:
        Tokens, positions and which columns are real (bool): `[B, longest]` each.
    """
    width = int(lengths.max())
    columns = torch.arange(width, device=input_ids.device)
    padding = (width - lengths)[:, None]  # [B, 1]
    positions = (columns - padding).clamp(min=0)  # [B, longest]
    return input_ids.gather(1, positions), positions, columns >= padding
