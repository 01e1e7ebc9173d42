"""What vLLM is asked for: our sampling in its words, a seed for each sample, its answers."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.rollout.sampling import Sampling

# vLLM lifts a positive temperature below this to it in silence, so that tokens would be drawn from
# another distribution than the one asked for.
_LEAST_TEMPERATURE = 0.01


class Ask(NamedTuple):
    """One sample that is wanted.

    Attributes:
        prompt: token ids.
        seed: of its random stream, below 2**63.
    """

    prompt: list[int]
    seed: int


class Answer(NamedTuple):
    """One sample.

    Attributes:
        tokens: sampled ids, the stop token included.
        logprobs: with which each was drawn, natural logarithms.
        is_finished: ended by a stop token or a stop string.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    is_finished: bool


def is_finished(reason: str | None) -> bool:
    """Read vLLM's finish reason: a stop token or string ended the response, or its limit did.

    Raises:
        TrainingError: neither, so that what came is not a sample of the policy.
    """
    if reason not in ("stop", "length"):
        raise TrainingError(f"vLLM ended a response by {reason!r}, see its log")
    return reason == "stop"


class Engine(abc.ABC):
    """A running vLLM, wherever it runs.

    Attributes:
        max_model_len: most tokens of a prompt and its response.
    """

    max_model_len: int

    @abc.abstractmethod
    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in the place of those that are there, and forget what those computed."""

    def sleep(self) -> None:
        """Give memory back until the next `load`, where the engine can.

        Raises:
            ConfigError: it cannot.
        """
        raise ConfigError("model.generator.sleeps: this engine cannot sleep")

    @abc.abstractmethod
    def draw(self, asks: list[Ask], parameters: dict[str, Any]) -> list[Answer]:
        """Draw all samples, in the order of the asks; parameters by `sampling_parameters`."""


def sampling_parameters(sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Say our sampling in the words of vLLM's `SamplingParams`, which its server knows, too.

    vLLM's own rules for EOS are off (`ignore_eos`): the stop tokens are those of the caller. What a
    model's `generation_config.json` may set besides is set to nothing.

    Args:
        sampling: length, temperature, truncation and stop strings.
        stop_ids: tokens that end a response.

    Returns:
        Keyword arguments, all of them plain types.

    Raises:
        ConfigError: vLLM would draw from another distribution.
    """
    if 0 < sampling.temperature < _LEAST_TEMPERATURE:
        raise ConfigError(
            f"temperature {sampling.temperature}: vLLM takes 0 or at least {_LEAST_TEMPERATURE}"
        )
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "stop": list(sampling.stop_strings),
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": True,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,  # of the sampled token alone
    }


def sample_seeds(seed: int, prompt_ids: Sequence[int], samples_per_prompt: int) -> list[int]:
    """Name the random stream of each sample by the rollout's seed, its prompt and its number.

    Args:
        seed: of the rollout.
        prompt_ids: `B` names of prompts.
        samples_per_prompt: `K`.

    Returns:
        `B * K` seeds below 2**63, the samples of a prompt together.
    """
    return [
        int(_hash(seed, prompt_id, sample) >> np.uint64(1))
        for prompt_id in prompt_ids
        for sample in range(samples_per_prompt)
    ]


def _hash(*numbers: int) -> np.uint64:
    # Seeds that differ by one must not give streams that resemble each other.
    sequence = np.random.SeedSequence([number % 2**64 for number in numbers])
    return np.uint64(sequence.generate_state(1, np.uint64)[0])
