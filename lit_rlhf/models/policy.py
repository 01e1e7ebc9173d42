"""The policy: a causal language model that answers with log-probabilities of its responses."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_rlhf.batches import TokenRows
from lit_rlhf.models.backbone import (
    adapter_disabled,
    extend,
    hidden_states,
    run_rows,
    trunk_of,
    vocabulary_of,
    without_adapter_wrapper,
)
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.paths import paths_of
from lit_rlhf.models.scalar_head import ScalarHead
from lit_rlhf.objectives.logprobs import VocabularyScores, chunked_logprobs, logprobs_of_logits


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
        packing_width: tokens in a packed row of the trunk; None keeps the padded layout, as do
            architectures whose packed rows are not what each row is alone.

    Attributes:
        paths: which shortcuts the model takes, as measured.
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
        self.paths = paths_of(model)
        self.packing_width = packing_width if self.paths.packs else None
        width = self.paths.width
        self.value_head = ScalarHead(width, deviation=0.0, bias=True) if value_head else None

    @property
    def trunk(self) -> nn.Module:
        """The transformer without its vocabulary, adapters in place."""
        return trunk_of(without_adapter_wrapper(self.model))

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
        row, column = rows.response_mask.nonzero(as_tuple=True)  # [S] each
        with nullcontext() if with_adapter else adapter_disabled(self.model):
            selected, scores = self._score(rows, row, column, temperature, with_entropy)
        values = None
        if self.value_head is not None:
            values = _scatter(self.value_head(selected), row, column, rows.response_mask)
        entropy = scores.entropy
        if entropy is not None:
            entropy = _scatter(entropy, row, column, rows.response_mask)
        return TokenScores(
            _scatter(scores.logprobs, row, column, rows.response_mask), entropy, values
        )

    def _score(
        self, rows: TokenRows, row: Tensor, column: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, VocabularyScores]:
        """Return the state before each response token, `[S, H]`, and what is read off it."""
        targets = rows.input_ids[row, column]
        if self.paths.head is None:
            hidden, logits = self._own_logits(rows, row, column)
            return hidden, logprobs_of_logits(
                logits, targets, temperature=temperature, with_entropy=with_entropy
            )
        states, places = hidden_states(self.trunk, rows, self.packing_width)
        hidden = states[places[row, column - 1]]
        vocabulary = vocabulary_of(self.model, self.paths.head)
        return hidden, chunked_logprobs(
            hidden,
            vocabulary.weight,
            targets,
            bias=vocabulary.bias,
            temperature=temperature,
            softcap=vocabulary.softcap,
            scale=vocabulary.scale,
            with_entropy=with_entropy,
        )

    def _own_logits(self, rows: TokenRows, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole model: the states `[S, H]` and its logits `[S, V]` before each token."""
        kept: list[Tensor] = []
        # The trunk's own output: what a model calls its hidden states is not always the last.
        hook = self.trunk.register_forward_hook(lambda *call: kept.append(call[-1][0]))
        try:
            inner = without_adapter_wrapper(self.model)
            output, places = run_rows(inner, self.trunk, rows, self.packing_width)
        finally:
            hook.remove()
        before = places[row, column - 1]
        return kept[0].flatten(0, 1)[before], output.logits.flatten(0, 1)[before]

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
        assert self.paths.head is not None
        hidden = extend(self.trunk, input_ids, position_ids, attention_mask, cache)
        project = without_adapter_wrapper(self.model).get_output_embeddings()
        products: Tensor = project(hidden[:, None]).squeeze(1)
        return vocabulary_of(self.model, self.paths.head).finish(products)

    @property
    def transformers_config(self) -> Any:  # noqa: ANN401  (its fields differ by architecture)
        """The architecture's configuration."""
        return without_adapter_wrapper(self.model).config


def _scatter(values: Tensor, row: Tensor, column: Tensor, response_mask: Tensor) -> Tensor:
    # [S] -> [B, L]
    full = torch.zeros(response_mask.shape, dtype=torch.float32, device=values.device)
    return full.index_put((row, column), values.float())
