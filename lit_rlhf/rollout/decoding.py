"""Continuous batching: rows that finish leave the batch, and waiting prompts take their places.

All prompts are known at the start, so they are taken longest first: prompts that are computed
together are then of like length, and none needs more room than the first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.own_cache import left_padded
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.rollout.drawing import Drawn, Request

# Columns beyond those that are needed: the cache is moved to the left once in so many steps.
_SPARE_COLUMNS = 32
# Waiting prompts are computed once this share of all rows is free: a product with a few more rows
# costs about as much as one with many.
_REFILL_SHARE = 0.125


class _Rows(NamedTuple):
    """The rows in the batch, in the order of the cache: `[b]` each.

    Attributes:
        ids: which response of the request.
        cached: tokens of it in the cache.
    """

    ids: Tensor
    cached: Tensor

    def select(self, places: Tensor) -> _Rows:
        return _Rows(*(tensor[places] for tensor in self))

    def join(self, others: _Rows) -> _Rows:
        return _Rows(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


class Decoding:
    """One run of the engine.

    Args:
        policy: the model that speaks.
        request: what is to be drawn.
        max_rows: how many rows at once.
        max_cached_tokens: how many rows times the tokens of the longest.

    Attributes:
        drawn: the responses so far.

    Raises:
        ConfigError: there are stop strings, but nothing to decode tokens with.
    """

    def __init__(
        self, policy: PolicyModel, request: Request, *, max_rows: int, max_cached_tokens: int
    ) -> None:
        self.policy = policy
        self.request = request
        self.drawn = Drawn(request)
        self._waiting = request.lengths.argsort(descending=True, stable=True).tolist()
        longest = int(request.lengths.max()) + request.sampling.max_new_tokens
        num_rows = min(max_rows, max_cached_tokens // longest, len(request.uniforms))
        # The samples of a prompt are decoded together, however many they are.
        self._num_rows = max(num_rows, request.samples_per_prompt)
        self._num_columns = longest + _SPARE_COLUMNS
        self._cache = RowCache(self._num_rows, self._num_columns)
        self._rows: _Rows | None = None
        # [b, V] of the next token of each row; used up by the draw.
        self._logits: Tensor | None = None

    def run(self) -> None:
        """Draw every response."""
        while self._waiting or self._rows is not None:
            if self._has_room():
                self._admit()
            assert self._rows is not None
            alive = self._draw(self._rows)
            self._drop_others(alive)
            if self._rows is not None:
                self._extend(self._rows)

    def _has_room(self) -> bool:
        free = self._num_rows - self._cache.size
        at_least = max(self.request.samples_per_prompt, int(self._num_rows * _REFILL_SHARE))
        at_least = min(at_least, len(self._waiting) * self.request.samples_per_prompt)
        return bool(self._waiting) and (self._cache.size == 0 or free >= at_least)

    def _admit(self) -> None:
        """Compute as many waiting prompts as there are places, each once for all its samples."""
        samples = self.request.samples_per_prompt
        count = (self._num_rows - self._cache.size) // samples
        chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        prompts = torch.tensor(chosen, device=self.request.lengths.device)
        lengths = self.request.lengths[prompts]
        cache, logits = _prefill(self.policy, self.request.input_ids[prompts], lengths)
        repeated = torch.arange(len(chosen), device=lengths.device).repeat_interleave(samples)
        self._cache.admit(cache, repeated)
        numbers = torch.arange(samples, device=lengths.device).repeat(len(chosen))
        ids = prompts[repeated] * samples + numbers
        new = _Rows(ids, lengths[repeated])
        self._rows = new if self._rows is None else self._rows.join(new)
        logits = logits if samples == 1 else logits[repeated]
        self._logits = logits if self._logits is None else torch.cat([self._logits, logits])

    def _draw(self, rows: _Rows) -> Tensor:
        """Draw the next token of every row; return the places of those that go on."""
        assert self._logits is not None
        goes_on = self.drawn.draw(rows.ids, self._logits)
        self._logits = None
        return goes_on.nonzero().squeeze(-1)

    def _drop_others(self, alive: Tensor) -> None:
        assert self._rows is not None
        if len(alive) < len(self._rows.ids):
            self._rows = self._rows.select(self._cache.keep(alive))
        if len(alive) == 0:
            self._rows = None

    def _extend(self, rows: _Rows) -> None:
        """Compute what follows the tokens that were drawn last."""
        longest = int(rows.cached.max())
        self._cache.forget_before(longest)
        self._cache.make_room(max([longest, *self._longest_waiting()]))
        last = self.drawn.last_tokens(rows.ids)
        self._logits = self.policy.next_logits(
            last[:, None], rows.cached[:, None], self._cache.readable(rows.cached), self._cache
        )
        self._cache.advance(1)
        self._rows = rows._replace(cached=rows.cached + 1)

    def _longest_waiting(self) -> list[int]:
        return [int(self.request.lengths[self._waiting[0]])] if self._waiting else []


def _prefill(policy: PolicyModel, input_ids: Tensor, lengths: Tensor) -> tuple[RowCache, Tensor]:
    """Compute prompts, left-padded: their cache, and the logits of their first tokens."""
    tokens, positions, is_real = left_padded(input_ids, lengths)
    width = tokens.shape[1]
    cache = RowCache(len(lengths), width, size=len(lengths))
    logits = policy.next_logits(tokens, positions, is_real, cache)
    cache.advance(width)
    return cache, logits
