"""vLLM inside the training process: weights are handed over as tensors."""

from __future__ import annotations

import importlib.util
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.models.handover import load_tokenizer
from lit_rlhf.ranks import world_size
from lit_rlhf.rollout.vllm.requests import Answer, Ask, Engine, is_finished

# Read by vLLM when it starts. The first keeps the engine in this process, the second its threads
# where the trainer's may run; the log level is the user's if one is set.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class InProcessEngine(Engine):
    """vLLM's `LLM` for a policy of this process.

    Args:
        model: of the policy, for its architecture.
        tokenizer: hub name or folder, or None: then no stop strings.
        options: further arguments of `vllm.LLM`.

    Raises:
        ConfigError: vLLM is not installed, cannot run in one of several processes, or refuses the
            model or an option.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: str | None, options: dict[str, Any]
    ) -> None:
        _require_vllm()
        _require_one_process()
        # The engine reads the model's shape from a folder; its weights come from `load`.
        with tempfile.TemporaryDirectory() as folder, _settings_of_this_process():
            write_config(model, Path(folder))
            if tokenizer is not None:
                load_tokenizer(tokenizer).save_pretrained(folder)
            self._llm = _start(folder, {**options, "skip_tokenizer_init": tokenizer is None})
        self._has_tokenizer = tokenizer is not None
        self._is_asleep = False
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights in the place of those that are there, and forget cached prompts."""
        # Room for the cache is taken behind the weights, when theirs is full.
        if self._is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
        )
        if self._is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._is_asleep = False
        if not self._llm.reset_prefix_cache():
            raise TrainingError("vLLM kept keys and values of the former weights; is it busy?")

    def sleep(self) -> None:
        """Give the memory of weights and cache back; `load` takes it again."""
        self._llm.sleep(level=2)
        self._is_asleep = True

    def draw(self, asks: list[Ask], parameters: dict[str, Any]) -> list[Answer]:
        """Draw all samples, in the order of the asks."""
        import vllm  # noqa: PLC0415 - optional

        if parameters["stop"] and not self._has_tokenizer:
            raise ConfigError(
                "model.generator.tokenizer: stop strings need the policy's tokenizer inside of "
                "vLLM; name its folder or hub name"
            )
        outputs = self._llm.generate(
            [{"prompt_token_ids": ask.prompt} for ask in asks],
            [
                vllm.SamplingParams(**parameters, detokenize=self._has_tokenizer, seed=ask.seed)
                for ask in asks
            ],
            use_tqdm=False,
        )
        return [_answer(output.outputs[0]) for output in outputs]


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the architecture's `config.json` for vLLM, with an output matrix of its own.

    On CPUs vLLM lays the output matrix out once when it starts; tied to the embeddings it would
    not be laid out again with them, and go on with the first weights (seen with 0.32).
    """
    untied = type(model.config).from_dict(model.config.to_dict())
    untied.architectures = [type(model).__name__]
    untied.get_text_config().tie_word_embeddings = False
    untied.tie_word_embeddings = False
    untied.save_pretrained(folder)


def _start(folder: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - vLLM is optional
    import vllm  # noqa: PLC0415 - optional

    try:
        return vllm.LLM(
            model=folder,
            load_format="dummy",
            # Of the distribution that is drawn from, after temperature and truncation.
            logprobs_mode="processed_logprobs",
            **options,
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"model.generator: vLLM does not start: {error}") from error


def _answer(output: Any) -> Answer:  # noqa: ANN401 - vLLM is optional
    finished = is_finished(output.finish_reason)  # first: a broken answer may lack the rest
    logprobs = [
        entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]
    return Answer(list(output.token_ids), logprobs, finished)


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "model.generator: vLLM is not installed here; start a server from an environment of "
            "its own and name it by model.generator.server, or install both into one environment: "
            "docs/guides/vllm.md says which versions"
        )


def _require_one_process() -> None:
    if world_size() > 1:
        raise ConfigError(
            "model.generator: inside of the training process vLLM works with one process "
            f"alone, not with {world_size()}; start a server and name it by "
            "model.generator.server"
        )


@contextmanager
def _settings_of_this_process() -> Iterator[None]:
    """Undo what vLLM sets for the whole process when it starts: threads, seeds, environment."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
