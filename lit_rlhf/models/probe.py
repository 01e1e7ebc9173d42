"""Three short rows through a model: alone and plainly, and by each of our shortcuts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.batches import TokenRows
from lit_rlhf.models.backbone import (
    HeadForm,
    extend,
    head_forms,
    hidden_states,
    trunk_of,
    vocabulary_of,
)
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.own_cache import generate_by_transformers, left_padded

# Two rows with the same prompt, and a longer one that shares nothing with them.
_PROMPTS = (7, 4, 4)
_LENGTHS = (12, 9, 11)
_NUM_STEPS = 3
# Relative to the size of the numbers. Of 21 architectures, in models that had not even begun to
# learn, float32 rounded at 6e-7 at most, and no leak between rows was below 1.7e-4.
_TOLERANCE = 5e-5


class TrunkProbe:
    """Compares hidden states.

    Args:
        trunk: a transformers base model, in float32 and evaluation mode.
    """

    def __init__(self, trunk: PreTrainedModel) -> None:
        self.trunk = trunk_of(trunk)
        self.config: PretrainedConfig = trunk.config
        self.rows = probe_rows(self.config, next(trunk.parameters()).device)
        self._plain: list[Tensor] = []

    @property
    def plain(self) -> list[Tensor]:
        """The hidden states of each row alone: `[length, H]`."""
        if not self._plain:
            self._plain = [self._alone(ids) for ids in self._alone_ids()]
        return self._plain

    @property
    def width(self) -> int:
        """`H` of the last hidden state."""
        return int(self.plain[0].shape[-1])

    def is_finite(self) -> bool:
        """Tell whether there are numbers to compare."""
        return all(bool(states.isfinite().all()) for states in self.plain)

    def is_causal(self) -> bool:
        """Tell whether a row is the same with other tokens behind it, in padded rows."""
        return self._by_rows(self.rows, None)

    def packs(self) -> bool:
        """Tell whether rows laid end to end are what each is alone, prompts shared or not."""
        if getattr(self.config.get_text_config(), "attention_chunk_size", None):
            return False  # chunks are counted by columns, and are longer than these rows
        apart = self.rows._replace(response_mask=torch.zeros_like(self.rows.response_mask))
        return all(self._by_rows(rows, sum(_LENGTHS)) for rows in (apart, self.rows))

    def packs_by_sequence(self) -> bool:
        """Tell the same of rows in one, under attention that knows sequences."""
        apart = self.rows._replace(response_mask=torch.zeros_like(self.rows.response_mask))
        return all(
            self._by_rows(rows, sum(_LENGTHS), by_sequence=True) for rows in (apart, self.rows)
        )

    def _by_rows(self, rows: TokenRows, width: int | None, *, by_sequence: bool = False) -> bool:
        hidden, places = hidden_states(self.trunk, rows, width, by_sequence=by_sequence)
        return _agree(
            (hidden[places[row, :length]], self.plain[row]) for row, length in enumerate(_LENGTHS)
        )

    def _alone(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.trunk(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        return hidden

    def _alone_ids(self) -> list[Tensor]:
        return [self.rows.input_ids[row, :length] for row, length in enumerate(_LENGTHS)]


class Probe(TrunkProbe):
    """Compares hidden states, logits and what is decoded.

    Args:
        model: a causal language model, in float32 and evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.model = model
        self._logits: list[Tensor] = []

    @property
    def logits(self) -> list[Tensor]:
        """The model's logits where `plain` has hidden states."""
        if not self._logits:
            self._logits = [self._logits_of(ids) for ids in self._alone_ids()]
        return self._logits

    def is_causal(self) -> bool:
        """Likewise; a model without logits is none."""
        return self.logits[0].ndim == 2 and super().is_causal()

    def head(self) -> HeadForm | None:
        """Return what follows the vocabulary matrix, where one of the usual forms gives logits."""
        output = self.model.get_output_embeddings()
        if not isinstance(getattr(output, "weight", None), Tensor):
            return None
        for form in head_forms(self.config):
            vocabulary = vocabulary_of(self.model, form)
            if vocabulary.weight.shape != (self.logits[0].shape[-1], self.width):
                return None
            ours = (vocabulary.logits(hidden) for hidden in self.plain)
            if _agree(zip(ours, self.logits, strict=True)):
                return form
        return None

    def decodes(self) -> bool:
        """Tell whether rows extended in our cache are what each is alone."""
        if getattr(self.config.get_text_config(), "attention_chunk_size", None):
            return False  # as in `packs`
        lengths = torch.tensor(_PROMPTS[:2], device=self.rows.lengths.device)
        prompts = self.rows.input_ids[:2]
        ids, positions, is_real = left_padded(prompts, lengths)
        prefilled = RowCache(2, ids.shape[1], size=2)
        hidden = [extend(self.trunk, ids, positions, is_real, prefilled)]
        prefilled.advance(ids.shape[1])
        cache = RowCache(2, ids.shape[1] + _NUM_STEPS)
        cache.admit(prefilled, torch.arange(2, device=ids.device))
        for _ in range(_NUM_STEPS):
            last = prompts.gather(1, lengths[:, None])
            readable = cache.readable(lengths)
            hidden.append(extend(self.trunk, last, lengths[:, None], readable, cache))
            cache.advance(1)
            lengths = lengths + 1
        return _agree(
            (states[row], self.plain[row][_PROMPTS[row] - 1 + step])
            for step, states in enumerate(hidden)
            for row in range(2)
        )

    def generates(self, path: str) -> bool:
        """Tell whether transformers' own decoding gives the logits of each row alone.

        Args:
            path: one of `paths.Decoding`, but ours.
        """
        lengths = torch.tensor(_PROMPTS[:2], device=self.rows.lengths.device)
        if path != "padded":
            lengths = lengths.clamp(max=int(lengths.min()))
        ids, _, is_real = left_padded(self.rows.input_ids[:2], lengths)
        output = generate_by_transformers(
            self.model, ids, is_real.long(), num_tokens=_NUM_STEPS, use_cache=path != "uncached"
        )
        whole = [
            self._logits_of(sequence[real:])
            for sequence, real in zip(output.sequences, (~is_real).sum(1).tolist(), strict=True)
        ]
        assert output.logits is not None
        pairs = (
            (logits[row].float(), whole[row][int(lengths[row]) - 1 + step])
            for step, logits in enumerate(output.logits)
            for row in range(2)
        )
        return _agree(pairs)

    def _logits_of(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return logits


def probe_rows(config: PretrainedConfig, device: torch.device) -> TokenRows:
    """Return three right-padded rows of ordinary tokens; the last two share their prompt.

    Tokens that the configuration names (padding, BOS, images) may be treated in their own way.
    """
    named = set(_named_tokens(config.to_dict()))
    num_tokens = config.get_text_config().vocab_size
    ordinary = [token for token in range(min(num_tokens, 2048)) if token not in named]
    stride = max(1, len(ordinary) // 41)
    tokens = [ordinary[(5 + 7 * stride * place) % len(ordinary)] for place in range(48)]
    ids = torch.tensor(tokens, device=device).view(3, 16)[:, : max(_LENGTHS)]
    ids[2, : _PROMPTS[1]] = ids[1, : _PROMPTS[1]]
    columns = torch.arange(ids.shape[1], device=device)
    prompts, lengths = (torch.tensor(sizes, device=device) for sizes in (_PROMPTS, _LENGTHS))
    in_response = (columns >= prompts[:, None]) & (columns < lengths[:, None])
    return TokenRows(ids, lengths, in_response)


def _named_tokens(fields: dict[str, object]) -> Iterator[int]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _named_tokens(value)
        elif str(name).endswith(("token_id", "token_index", "token_ids")):
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (token for token in values if isinstance(token, int))


def _agree(pairs: Iterator[tuple[Tensor, Tensor]]) -> bool:
    for ours, plain in pairs:
        gap = (ours - plain).abs().mean(-1).max()  # of the worst token: a leak may be short
        if not float(gap) <= _TOLERANCE * float(plain.abs().mean()):  # NaN is no agreement either
            return False
    return True
