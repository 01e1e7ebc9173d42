"""vLLM as a server: requests over its OpenAI-compatible API, weights through a folder."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.models.weights import write_weights
from lit_rlhf.rollout.vllm.requests import Answer, Ask, Engine, is_finished

_START = (
    "start it with VLLM_SERVER_DEV_MODE=1 and the options of docs/guides/vllm.md, on an address "
    "that only the trainer reaches"
)


class ServerEngine(Engine):
    """A client of one server.

    Args:
        address: such as `http://127.0.0.1:8000`.
        folder: where weights are written; the server reads it under the same path.
        dtype: of the written weights.
        num_connections: requests that are under way together.
        timeout_s: for the answer to one request.

    Raises:
        ConfigError: nobody answers there, or the server was not started as it must be.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        *,
        dtype: torch.dtype,
        num_connections: int,
        timeout_s: float,
    ) -> None:
        self._address = address.rstrip("/")
        self._folder = folder
        self._dtype = dtype
        self._num_connections = num_connections
        self._timeout_s = timeout_s
        try:
            card = self._get("/v1/models")["data"][0]
        except OSError as error:
            raise ConfigError(
                f"model.generator.server: no vLLM answers at {address} ({error}); {_START}"
            ) from error
        self._model: str = card["id"]
        self.max_model_len = int(card["max_model_len"])
        self._check_start()

    def _check_start(self) -> None:
        """Refuse a server that would go on with old weights or report other log-probabilities."""
        try:
            config = self._get("/server_info?config_format=json")["vllm_config"]
        except OSError as error:
            raise ConfigError(
                f"model.generator.server: {self._address} does not let weights be changed "
                f"({error}); {_START}"
            ) from error
        mode = config["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ConfigError(
                f"model.generator.server: it reports {mode}; {_START}, among them "
                "--logprobs-mode processed_logprobs"
            )

    def load(self, weights: dict[str, Tensor]) -> None:
        """Write the weights, let the server read them, and let it forget cached prompts."""
        write_weights(weights, self._folder, self._dtype)
        # A server that was started with dummy weights would make up new ones.
        overrides = {"load_config": {"load_format": "auto"}}
        self._call("update_config", {"overrides": overrides})
        self._call("reload_weights", {"weights_path": str(self._folder)})
        self._post("/reset_prefix_cache", {})

    def _call(self, method: str, arguments: dict[str, Any]) -> None:
        self._post("/collective_rpc", {"method": method, "kwargs": arguments})

    def draw(self, asks: list[Ask], parameters: dict[str, Any]) -> list[Answer]:
        """Draw all samples, in the order of the asks."""

        def one(ask: Ask) -> Answer:
            request = {"model": self._model, "prompt": ask.prompt, "seed": ask.seed}
            reply = self._post(
                "/v1/completions", {**request, **parameters, "return_token_ids": True}
            )
            return _answer(reply["choices"][0])

        with ThreadPoolExecutor(self._num_connections) as pool:
            return list(pool.map(one, asks))

    def _get(self, path: str) -> Any:  # noqa: ANN401 - what JSON holds
        with urllib.request.urlopen(self._address + path, timeout=self._timeout_s) as reply:
            return json.load(reply)

    def _post(self, path: str, content: dict[str, Any]) -> Any:  # noqa: ANN401 - what JSON holds
        request = urllib.request.Request(
            self._address + path,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                return json.loads(reply.read() or "null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise TrainingError(f"vLLM refused {path}: {error} {said}") from error
        except OSError as error:
            raise TrainingError(f"the vLLM server at {self._address} is gone: {error}") from error


def _answer(choice: dict[str, Any]) -> Answer:
    finished = is_finished(choice["finish_reason"])  # first: a broken answer may lack the rest
    logprobs: Sequence[float] = choice["logprobs"]["token_logprobs"]
    return Answer(choice["token_ids"], logprobs, finished)
