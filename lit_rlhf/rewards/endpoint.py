"""A reward behind an HTTP endpoint: a server of yours scores, the run asks it in batches."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.endpoints import parse_json, read_key, read_within, require_address, without_key
from lit_rlhf.errors import RewardError
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.ranges import require
from lit_rlhf.rewards.source import RewardSource

if TYPE_CHECKING:
    from httpx2 import Client

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_LONGEST_ASKED_S = 120.0  # of a server's Retry-After
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
_SHOWN = 300  # characters of what a server says
_MOST_BYTES_A_SCORE = 1000

_chance = random.Random()  # of its own: waits must not move the run's random numbers
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointReward(RewardSource):
    """Score responses by a server.

    Each request is a POST of
    `{"prompts": [...], "responses": [...], "fields": [{...}, ...]}`, the answer
    `{"scores": [...]}`, one number a response, null for one that cannot be scored. A prompt is a
    text, or a chat as a list of messages; fields are the record's own, such as an answer key.

    A request without an answer in time, or with a status that passes (429, 5xx), is sent again;
    the waits double from half a second, or are what the server asks for (`Retry-After`, up to two
    minutes). Any other status, and an answer that is not of this form, ends the run: the same
    request would meet it again.

    Attributes:
        address: where requests go, such as `http://127.0.0.1:8000/score`.
        batch_size: responses in one request.
        num_parallel: requests on their way at once.
        request_timeout_s: seconds for one answer.
        num_attempts: how often a request is sent.
        failures: what becomes of responses that no attempt got a score for: "leave_out" as if they
            could not be scored, with a line in the log, "error" ends the run.
        key_variable: environment variable with a key, sent as `Authorization: Bearer KEY`; null for
            none. The key is in no file or message.

    Raises:
        ConfigError: an address that is none, or a number out of range.
    """

    address: str
    batch_size: int = 64
    num_parallel: int = 4
    request_timeout_s: float = 60.0
    num_attempts: int = 5
    failures: Literal["leave_out", "error"] = "leave_out"
    key_variable: str | None = None

    abstains = True

    def __post_init__(self) -> None:
        """Check the settings."""
        require_address("EndpointReward.address", self.address, self.key_variable)
        require("EndpointReward.batch_size", self.batch_size, least=1)
        require("EndpointReward.num_parallel", self.num_parallel, least=1)
        require("EndpointReward.request_timeout_s", self.request_timeout_s, above=0)
        require("EndpointReward.num_attempts", self.num_attempts, least=1)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`.

        Raises:
            RewardError: the server refuses a request, or its answer is not one score a response.
        """
        from httpx2 import Client  # noqa: PLC0415 - only where there is a server

        fields = [{} for _ in prompts] if batch is None else batch.fields
        rows = list(zip(prompts, responses, fields, strict=True))
        parts = [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]
        key = read_key("EndpointReward", self.key_variable)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        with (
            Client(timeout=self.request_timeout_s, headers=headers) as client,
            ThreadPoolExecutor(self.num_parallel) as threads,
        ):
            scores = list(threads.map(lambda part: self._score(client, part, key), parts))
        device = None if batch is None else batch.rows.lengths.device
        return torch.tensor([one for part in scores for one in part], device=device)

    def _score(self, client: Client, rows: Sequence[tuple[Any, ...]], key: str) -> list[float]:
        """Return the scores of one request's rows."""
        prompts, responses, fields = zip(*rows, strict=True)
        request = {"prompts": prompts, "responses": responses, "fields": fields}
        try:
            body = json.dumps(request, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RewardError(f"{self.address}: a row that JSON cannot hold: {error}") from error
        fault, asked = "", 0.0
        for attempt in range(self.num_attempts):
            if attempt:
                time.sleep(self._wait_s(attempt, asked))
            status, asked, answer = self._post(client, body, _MOST_BYTES_A_SCORE * (len(rows) + 1))
            said = without_key(answer[:_SHOWN].decode(errors="replace"), key)
            if status == 200:
                return self._scores_of(answer, said, len(rows))
            fault = f"HTTP {status} {said}" if status else said
            if status and status not in _PASSING:
                hint = f"; the key is read from {self.key_variable}" if status == 401 else ""
                raise RewardError(f"{self.address}: {fault}{hint}")
        message = f"{self.address}: no answer in {self.num_attempts} attempts; the last: {fault}"
        if self.failures == "error":
            raise RewardError(message)
        _log.warning("%s; %d responses are left out", message, len(rows))
        return [math.nan] * len(rows)

    def _post(self, client: Client, body: bytes, most: int) -> tuple[int, float, bytes]:
        """Send one request: the status (0 without an answer), the wait asked for, what was said."""
        from httpx2 import TransportError  # noqa: PLC0415

        end = time.monotonic() + self.request_timeout_s
        try:
            with client.stream("POST", self.address, content=body) as reply:
                answer = read_within(reply.iter_bytes(), end, most)
                if answer is None:
                    return 0, 0.0, b"an answer that does not end"
                asked = reply.headers.get("Retry-After", "")
                return reply.status_code, float(asked) if asked.isdecimal() else 0.0, answer
        except TransportError as error:
            return 0, 0.0, f"{type(error).__name__}: {error}".encode()

    def _wait_s(self, attempt: int, asked: float) -> float:
        if asked:
            return min(asked, _LONGEST_ASKED_S)
        longest: float = min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S)
        return longest * _chance.uniform(0.5, 1.0)

    def _scores_of(self, answer: bytes, said: str, num_rows: int) -> list[float]:
        """Read an answer.

        Raises:
            RewardError: it is not one score for each response.
        """
        expected = f'expected {{"scores": [...]}} with {num_rows} numbers'
        try:
            scores = parse_json(answer)["scores"]
            numbers = [math.nan if score is None else score + 0.0 for score in scores]
        except (ValueError, TypeError, LookupError) as error:
            raise RewardError(f"{self.address}: answered {said!r}; {expected}") from error
        if len(numbers) != num_rows:
            raise RewardError(
                f"{self.address}: answered {len(numbers)} scores for {num_rows} responses; "
                f"{expected}"
            )
        return numbers
