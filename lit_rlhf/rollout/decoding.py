"""Continuous batching: rows that finish leave the batch, and waiting prompts take their places.

All prompts are known at the start, so they are taken longest first: prompts that are computed
together are then of like length, and none needs more room than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import cut_by_tokens
from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.models.own_cache import left_padded
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.rollout.graphs import Recorder, Steps
from lit_rlhf.rollout.sampling import Sampling, draw_tokens, rule_out_stops

# Columns beyond those that are needed: the cache is moved to the left once in so many steps.
_SPARE_COLUMNS = 32
# Waiting prompts are computed once this share of all rows is free: a product with a few more rows
# costs about as much as one with many.
_REFILL_SHARE = 0.125
# A token stands for a byte or more, so that the end of the text lies in so many last tokens.
_BYTES_PER_CHARACTER = 4


class Request(NamedTuple):
    """What is to be drawn.

    Attributes:
        input_ids: `[B, P]` prompts, right-padded.
        lengths: `[B]` tokens of each prompt.
        samples_per_prompt: `K`.
        uniforms: `[B * K, T]` the random numbers of each response.
        sampling: how tokens are drawn, and the strings that end a response.
        stop_ids: `[n]` int64, the tokens that end one.
        decode: rows of tokens to texts; needed for stop strings.
    """

    input_ids: Tensor
    lengths: Tensor
    samples_per_prompt: int
    uniforms: Tensor
    sampling: Sampling
    stop_ids: Tensor
    decode: Callable[[list[list[int]]], list[str]] | None


class Drawn:
    """The responses of a request so far.

    Args:
        request: what is to be drawn.

    Attributes:
        tokens: `[B * K, T]` int64.
        logprobs: `[B * K, T]` float32.
        lengths: `[B * K]` int64.
        finished: `[B * K]` bool.

    Raises:
        ConfigError: there are stop strings, but nothing to decode tokens with.
    """

    def __init__(self, request: Request) -> None:
        if request.sampling.stop_strings and request.decode is None:
            raise ConfigError("sampling.stop_strings: this caller cannot turn tokens into text")
        self.request = request
        device = request.input_ids.device
        shape = request.uniforms.shape
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(shape[0], dtype=torch.long, device=device)
        self.finished = torch.zeros(shape[0], dtype=torch.bool, device=device)

    def draw(self, ids: Tensor, logits: Tensor) -> list[bool]:
        """Draw the next token of some responses.

        Args:
            ids: `[b]` int64, which responses; none of them has ended.
            logits: `[b, V]` float32 of the model; changed in place.

        Returns:
            Which responses go on. A host that runs ahead of its GPU waits for it here alone.

        Raises:
            TrainingError: the logits of a row are not numbers.
        """
        sampling, stop_ids = self.request.sampling, self.request.stop_ids
        steps = self.lengths[ids]
        if sampling.min_new_tokens:
            rule_out_stops(logits, stop_ids, is_too_short=steps < sampling.min_new_tokens)
        drawn = draw_tokens(logits, self.request.uniforms[ids, steps], sampling)
        self.tokens[ids, steps] = drawn.tokens
        self.logprobs[ids, steps] = drawn.logprobs
        self.lengths[ids] += 1
        is_stop = torch.isin(drawn.tokens, stop_ids)
        if sampling.stop_strings:
            is_stop |= self._completes_string(ids)
        self.finished[ids] = is_stop
        goes_on = ~is_stop & (steps + 1 < sampling.max_new_tokens)
        answers: list[list[bool]] = torch.stack([goes_on, drawn.is_sound]).tolist()
        if not all(answers[1]):  # the index of a NaN is not the likeliest token
            raise TrainingError(
                "the policy's logits are no numbers (NaN or infinite), so that no token can be "
                "drawn: its weights have diverged; start again from an earlier checkpoint with a "
                "lower learning rate"
            )
        return answers[0]

    def last_tokens(self, ids: Tensor) -> Tensor:
        """Return the newest token of some responses, `[b]`."""
        return self.tokens[ids, self.lengths[ids] - 1]

    def _completes_string(self, ids: Tensor) -> Tensor:
        """Tell which responses end in a text that has a stop string in it."""
        decode, strings = self.request.decode, self.request.sampling.stop_strings
        assert decode is not None
        num_last = _BYTES_PER_CHARACTER * max(len(string) for string in strings)
        tails = [
            row[max(0, length - num_last) : length]
            for row, length in zip(
                self.tokens[ids].tolist(), self.lengths[ids].tolist(), strict=True
            )
        ]
        found = [any(string in text for string in strings) for text in decode(tails)]
        long_enough = self.lengths[ids] > self.request.sampling.min_new_tokens
        return torch.tensor(found, device=ids.device) & long_enough


class _Rows(NamedTuple):
    """The rows in the batch, in the order of the cache: `[b]` each.

    Attributes:
        ids: which response of the request.
        cached: tokens of it in the cache.
        lengths: the same numbers where the host has them without waiting for a GPU.
    """

    ids: Tensor
    cached: Tensor
    lengths: list[int]

    def select(self, places: list[int]) -> _Rows:
        rows = torch.tensor(places, dtype=torch.long, device=self.ids.device)
        return _Rows(self.ids[rows], self.cached[rows], [self.lengths[place] for place in places])

    def join(self, others: _Rows) -> _Rows:
        ids, cached = torch.cat([self.ids, others.ids]), torch.cat([self.cached, others.cached])
        return _Rows(ids, cached, self.lengths + others.lengths)

    def longer(self) -> _Rows:
        return _Rows(self.ids, self.cached + 1, [length + 1 for length in self.lengths])


class Decoding:
    """One run of the engine.

    Args:
        policy: the model that speaks.
        request: what is to be drawn.
        max_rows: how many rows at once.
        max_cached_tokens: how many rows times the tokens of the longest.
        prefill_tokens: of prompts that are computed together, padding included.
        recorder: makes graphs of steps, see `graphs`; None computes all of them plainly.

    Attributes:
        drawn: the responses so far.

    Raises:
        ConfigError: there are stop strings, but nothing to decode tokens with.
    """

    def __init__(
        self,
        policy: PolicyModel,
        request: Request,
        *,
        max_rows: int,
        max_cached_tokens: int,
        prefill_tokens: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.policy = policy
        self.request = request
        self.drawn = Drawn(request)
        self._lengths: list[int] = request.lengths.tolist()
        self._waiting = sorted(range(len(self._lengths)), key=lambda prompt: -self._lengths[prompt])
        self._prefill_tokens = prefill_tokens
        longest = max(self._lengths) + request.sampling.max_new_tokens
        num_rows = min(max_rows, max_cached_tokens // longest, len(request.uniforms))
        # The samples of a prompt are decoded together, however many they are.
        self._num_rows = max(num_rows, request.samples_per_prompt)
        self._num_columns = longest + _SPARE_COLUMNS
        self._cache = RowCache(self._num_rows, self._num_columns)
        self._next_logits = Steps(policy, self._cache, recorder)
        self._rows: _Rows | None = None
        # [b, V] of the next token of each row; used up by the draw.
        self._logits: Tensor | None = None

    def run(self) -> None:
        """Draw every response."""
        while self._waiting or self._rows is not None:
            if self._has_room():
                self._admit()
            assert self._rows is not None
            self._drop_ended(self._rows, self._draw(self._rows))
            if self._rows is not None:
                self._extend(self._rows)

    def _has_room(self) -> bool:
        free = self._num_rows - self._cache.size
        at_least = max(self.request.samples_per_prompt, int(self._num_rows * _REFILL_SHARE))
        at_least = min(at_least, len(self._waiting) * self.request.samples_per_prompt)
        return bool(self._waiting) and (self._cache.size == 0 or free >= at_least)

    def _admit(self) -> None:
        """Compute as many waiting prompts as there are places, each once for all its samples."""
        count = (self._num_rows - self._cache.size) // self.request.samples_per_prompt
        chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        lengths = [self._lengths[prompt] for prompt in chosen]
        for part in cut_by_tokens(lengths, None, self._prefill_tokens):
            self._prefill(chosen[part])

    def _prefill(self, chosen: list[int]) -> None:
        """Compute prompts, the longest first, and put their samples into the batch."""
        samples = self.request.samples_per_prompt
        prompts = torch.tensor(chosen, device=self.request.lengths.device)
        lengths = self.request.lengths[prompts]
        cache, logits = _prefill(self.policy, self.request.input_ids[prompts], lengths)
        repeated = torch.arange(len(chosen), device=lengths.device).repeat_interleave(samples)
        self._cache.admit(cache, repeated)
        numbers = torch.arange(samples, device=lengths.device).repeat(len(chosen))
        ids = prompts[repeated] * samples + numbers
        host_lengths = [self._lengths[prompt] for prompt in chosen for _ in range(samples)]
        new = _Rows(ids, lengths[repeated], host_lengths)
        self._rows = new if self._rows is None else self._rows.join(new)
        logits = logits if samples == 1 else logits[repeated]
        self._logits = logits if self._logits is None else torch.cat([self._logits, logits])

    def _draw(self, rows: _Rows) -> list[int]:
        """Draw the next token of every row; return the places of those that go on."""
        assert self._logits is not None
        goes_on = self.drawn.draw(rows.ids, self._logits)
        self._logits = None
        return [place for place, is_alive in enumerate(goes_on) if is_alive]

    def _drop_ended(self, rows: _Rows, alive: list[int]) -> None:
        if len(alive) < len(rows.lengths):
            kept = self._cache.keep(alive)
            self._rows = rows.select(kept) if kept else None

    def _extend(self, rows: _Rows) -> None:
        """Compute what follows the tokens that were drawn last."""
        longest = max(rows.lengths)
        self._cache.forget_before(longest)
        # The longest prompt that waits is the first.
        self._cache.make_room(
            max([longest, *(self._lengths[prompt] for prompt in self._waiting[:1])])
        )
        last = self.drawn.last_tokens(rows.ids)
        self._logits = self._next_logits(last, rows.cached)
        self._cache.advance(1)
        self._rows = rows.longer()


def _prefill(policy: PolicyModel, input_ids: Tensor, lengths: Tensor) -> tuple[RowCache, Tensor]:
    """Compute prompts, left-padded: their cache, and the logits of their first tokens."""
    tokens, positions, is_real = left_padded(input_ids, lengths)
    width = tokens.shape[1]
    cache = RowCache(len(lengths), width, size=len(lengths))
    logits = policy.next_logits(tokens, positions, is_real, cache)
    cache.advance(width)
    return cache, logits
