"""What is to be drawn, and the responses as they grow, whichever way their logits come."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout.sampling import Sampling, adjust_logits, draw_tokens, require_numbers

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
        logits = adjust_logits(
            logits, sampling, stop_ids, is_too_short=steps < sampling.min_new_tokens
        )
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
        require_numbers(all(answers[1]))
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
