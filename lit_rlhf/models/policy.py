"""The policy: a causal language model that answers with log-probabilities of its responses."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_rlhf.batches import TokenRows
from lit_rlhf.models.backbone import (
    adapter_disabled,
    hidden_states,
    vocabulary_of,
    without_adapter_wrapper,
)
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.scalar_head import ScalarHead
from lit_rlhf.objectives.logprobs import chunked_logprobs


class TokenScores(NamedTuple):
    """What one forward says about the response tokens of each row.

    All are `[B, L]` float32, aligned with the tokens, zero where `response_mask` is False.

    Attributes:
        logprobs: natural logarithm of the probability of each token given those before it.
        entropy: of the distribution that the token was drawn from, or None.
        values: the critic's estimate before each token, or None without a value head.
    """

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None


class PolicyModel(nn.Module):
    """A causal language model with an optional value head on its trunk.

    Args:
        model: a transformers causal language model, or a peft model around one.
        value_head: add a critic on the policy's own trunk, starting at zero (the detail of
            lm-human-preference-details: the value head's weights start with deviation 0).
        packing_width: tokens in a packed row of the trunk; None keeps the padded layout.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        value_head: bool = False,
        packing_width: int | None = DEFAULT_WIDTH,
    ) -> None:
        super().__init__()
        self.model = model
        self.packing_width = packing_width
        width = without_adapter_wrapper(model).config.get_text_config().hidden_size
        self.value_head = ScalarHead(width, deviation=0.0, bias=True) if value_head else None

    @property
    def trunk(self) -> nn.Module:
        """The transformer without its vocabulary, adapters in place."""
        trunk = without_adapter_wrapper(self.model).base_model
        assert isinstance(trunk, nn.Module)
        return trunk

    def forward(
        self,
        rows: TokenRows,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
        with_adapter: bool = True,
    ) -> TokenScores:
        """Score the response tokens of each row.

        Only the hidden states that predict a response token meet the vocabulary, in chunks: no
        `[B, L, V]` tensor exists.

        Args:
            rows: `B` rows of up to `L` tokens.
            temperature: the logits are divided by it, as they were when the tokens were drawn.
            with_entropy: return the entropy as well.
            with_adapter: False switches a LoRA adapter off: the reference policy.

        Returns:
            Log-probabilities, entropy and values, `[B, L]` each.
        """
        with nullcontext() if with_adapter else adapter_disabled(self.model):
            hidden, places = hidden_states(self.trunk, rows, self.packing_width)
        row, column = rows.response_mask.nonzero(as_tuple=True)  # [S] each
        selected = hidden[places[row, column - 1]]  # [S, H]: the state before each token
        vocabulary = vocabulary_of(self.model)
        scores = chunked_logprobs(
            selected,
            vocabulary.weight,
            rows.input_ids[row, column],
            bias=vocabulary.bias,
            temperature=temperature,
            softcap=vocabulary.softcap,
            scale=vocabulary.scale,
            with_entropy=with_entropy,
        )
        values = None
        if self.value_head is not None:
            values = _scatter(self.value_head(selected), row, column, rows.response_mask)
        entropy = scores.entropy
        if entropy is not None:
            entropy = _scatter(entropy, row, column, rows.response_mask)
        return TokenScores(
            _scatter(scores.logprobs, row, column, rows.response_mask), entropy, values
        )

    def next_logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        cache: RowCache,
    ) -> Tensor:
        """Extend cached sequences and return the logits of the next token only.

        Args:
            input_ids: `[B, S]` the tokens to add (a prompt, left-padded, or one token a row).
            position_ids: `[B, S]` their positions in their own sequences.
            attention_mask: `[B, cached + S]` bool, True at real tokens.
            cache: the keys and values so far; written to, but not advanced.

        Returns:
            `[B, V]` float32 logits after the last token.
        """
        vocabulary = vocabulary_of(self.model)
        hidden = self.trunk(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        project = without_adapter_wrapper(self.model).get_output_embeddings()
        logits: Tensor = project(hidden[:, -1:]).squeeze(1).float()
        if vocabulary.scale != 1:
            logits = logits * vocabulary.scale
        if vocabulary.softcap is not None:
            logits = vocabulary.softcap * torch.tanh(logits / vocabulary.softcap)
        return logits

    @property
    def transformers_config(self) -> Any:  # noqa: ANN401  (its fields differ by architecture)
        """The architecture's configuration."""
        return without_adapter_wrapper(self.model).config


def _scatter(values: Tensor, row: Tensor, column: Tensor, response_mask: Tensor) -> Tensor:
    # [S] -> [B, L]
    full = torch.zeros(response_mask.shape, dtype=torch.float32, device=values.device)
    return full.index_put((row, column), values.float())
