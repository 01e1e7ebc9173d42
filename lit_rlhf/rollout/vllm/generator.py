"""The generator that hands prompts and weights to vLLM."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import without_adapter_wrapper
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.weights import merged_weights, weight_versions
from lit_rlhf.ranges import require
from lit_rlhf.ranks import any_rank, rank, wait_for_all
from lit_rlhf.rollout.generation import Decode, Generation, Generator
from lit_rlhf.rollout.sampling import Sampling
from lit_rlhf.rollout.vllm.in_process import InProcessEngine
from lit_rlhf.rollout.vllm.requests import Answer, Ask, Engine, sample_seeds, sampling_parameters
from lit_rlhf.rollout.vllm.server import ServerEngine


class _Slot:
    """What lasts from call to call: the engine, and which weights it has."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.policy: weakref.ref[PolicyModel] = lambda: None  # type: ignore[assignment]  # none yet
        self.versions: tuple[object, ...] = ()
        self.longest: int | None = None

    def __reduce__(self) -> tuple[type[_Slot], tuple[()]]:
        # A copy, or another process, starts an engine of its own.
        return _Slot, ()


@dataclass(frozen=True)
class VLLMGenerator(Generator):
    """Let vLLM draw the responses, with the policy's weights as they are at each call.

    The engine starts at the first call. Weights go there when they have changed since the last
    one, LoRA adapters merged. A sample depends on the seed, its prompt and its number, and on
    vLLM's kernels, whose rounding may depend on who else is in the batch.

    Attributes:
        server: address of a running server, such as `http://127.0.0.1:8000`; null for an engine in
            this process.
        weights_folder: where weights are written for the server, which must find it under the same
            path; null for a temporary folder of this machine.
        tokenizer: of the policy, for stop strings in this process; a server has its own.
        dtype: in which vLLM computes, and weights are written.
        max_model_len: most tokens of a prompt and its response; null for those of the longest
            prompt in the data, else for the model's own limit; in this process only.
        gpu_memory_utilization: share of the device's memory for vLLM; in this process only.
        kv_cache_gib: memory of keys and values instead of that share; in this process only.
        enforce_eager: do not compile the model; in this process only.
        sleeps: give the memory of weights and cache back between rollouts, and take it again with
            the weights at the next; on a GPU, in this process only.
        num_connections: requests to the server that are under way together.
        timeout_s: for the server's answer to one request.
    """

    server: str | None = None
    weights_folder: str | None = None
    tokenizer: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.3
    kv_cache_gib: float | None = None
    enforce_eager: bool = False
    sleeps: bool = False
    num_connections: int = 256
    timeout_s: float = 600.0
    _slot: _Slot = field(default_factory=_Slot, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, by name."""
        share = self.gpu_memory_utilization
        require("model.generator.gpu_memory_utilization", share, above=0, most=1)
        require("model.generator.max_model_len", self.max_model_len, least=1, is_optional=True)
        require("model.generator.kv_cache_gib", self.kv_cache_gib, above=0, is_optional=True)
        require("model.generator.num_connections", self.num_connections, least=1)
        require("model.generator.timeout_s", self.timeout_s, above=0)
        if self.server is not None and self.sleeps:
            raise ConfigError(
                "model.generator.sleeps: a server has its own GPU, or its own share; leave it out"
            )
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise ConfigError(
                f"generator.server must be an address like http://127.0.0.1:8000, got {self.server}"
            )

    @torch.no_grad()
    def __call__(
        self,
        policy: PolicyModel,
        prompts: PromptBatch,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        decode: Decode | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Draw responses, see `Generator`; vLLM decodes by its own tokenizer.

        Raises:
            ConfigError: vLLM is missing or was not started as it must be, cannot honour the
                sampling, or has no room for a prompt and its response.
        """
        parameters = sampling_parameters(sampling, stop_ids)
        device = prompts.input_ids.device
        # The trainer's autocast would reach into the kernels of an engine in this process.
        with torch.autocast(device.type, enabled=False):
            engine = self._refreshed(policy)
            needed = int(prompts.lengths.max()) + sampling.max_new_tokens
            if needed > engine.max_model_len:
                raise ConfigError(
                    f"model.generator: a prompt and its response may need {needed} tokens, but "
                    f"vLLM has room for {engine.max_model_len}; raise max_model_len, or lower "
                    "data.max_prompt_length or sampling.max_new_tokens"
                )
            seeds = sample_seeds(seed, prompts.prompt_ids.tolist(), samples_per_prompt)
            lengths = prompts.lengths.repeat_interleave(samples_per_prompt).tolist()
            rows = prompts.input_ids.repeat_interleave(samples_per_prompt, 0).tolist()
            asks = [
                Ask(row[:length], own)
                for row, length, own in zip(rows, lengths, seeds, strict=True)
            ]
            answers = engine.draw(asks, parameters)
            if self.sleeps:
                engine.sleep()
                self._slot.versions = ()  # weights went with the memory
        return _generation(answers, device, is_greedy=sampling.temperature == 0)

    def expect(self, longest: int) -> None:
        """Remember the longest prompt and response, for `max_model_len`."""
        self._slot.longest = max(longest, self._slot.longest or 0)

    def _refreshed(self, policy: PolicyModel) -> Engine:
        """Return the engine with the policy's weights as they are now."""
        slot = self._slot
        if slot.engine is None:
            slot.engine = self._start(policy)
        versions = tuple(weight_versions(policy.model))
        is_same = slot.policy() is policy and slot.versions == versions
        # Decided together: a rank that saw no change must not draw while the weights are replaced.
        if any_rank(not is_same, next(policy.parameters()).device):
            # One server may serve all ranks: rank zero changes its weights while nobody draws.
            wait_for_all()
            if rank() == 0:
                slot.engine.load(merged_weights(policy.model))
            wait_for_all()
            slot.policy, slot.versions = weakref.ref(policy), versions
        return slot.engine

    def _start(self, policy: PolicyModel) -> Engine:
        if self.server is None:
            kv_cache = None if self.kv_cache_gib is None else int(self.kv_cache_gib * 2**30)
            options: dict[str, Any] = {
                "dtype": self.dtype,
                "max_model_len": self.max_model_len or self._slot.longest,
                "gpu_memory_utilization": self.gpu_memory_utilization,
                "kv_cache_memory_bytes": kv_cache,
                "enforce_eager": self.enforce_eager,
            }
            if self.sleeps:
                options["enable_sleep_mode"] = True
            return InProcessEngine(without_adapter_wrapper(policy.model), self.tokenizer, options)
        if self.weights_folder is None:
            folder = Path(tempfile.mkdtemp(prefix="lit-rlhf-weights-"))
            weakref.finalize(self._slot, shutil.rmtree, folder, ignore_errors=True)
        else:
            folder = Path(self.weights_folder).expanduser().resolve()
            folder.mkdir(parents=True, exist_ok=True)
        return ServerEngine(
            self.server,
            folder,
            dtype=getattr(torch, self.dtype),
            num_connections=self.num_connections,
            timeout_s=self.timeout_s,
        )


def _generation(answers: list[Answer], device: torch.device, *, is_greedy: bool) -> Generation:
    """Lay answers of different lengths out as `[B, T]`."""
    lengths = [len(answer.tokens) for answer in answers]
    shape = len(answers), max(lengths)
    tokens = torch.zeros(shape, dtype=torch.int64)
    logprobs = torch.zeros(shape)
    for row, answer in enumerate(answers):
        tokens[row, : lengths[row]] = torch.tensor(answer.tokens)
        if not is_greedy:  # vLLM reports the model's own there; nothing was drawn
            logprobs[row, : lengths[row]] = torch.tensor(answer.logprobs)
    finished = torch.tensor([answer.is_finished for answer in answers])
    parts: list[Tensor] = [tokens, torch.tensor(lengths), finished, logprobs]
    return Generation(*(part.to(device) for part in parts))
