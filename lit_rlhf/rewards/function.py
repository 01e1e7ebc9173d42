"""Any Python function as a reward."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.prompts import Message, Prompt, Response, as_messages
from lit_rlhf.ranges import require
from lit_rlhf.rewards.asking import first_rows
from lit_rlhf.rewards.importing import import_function, place_of
from lit_rlhf.rewards.source import RewardSource, rows_by_prompt

_log = logging.getLogger(__name__)

_SHARE_OF_LIMIT = 0.98  # at the whole limit `ask` ends all calls at once

RewardFunction = Callable[..., Any]  # of any signature that `_arguments` can serve


@dataclass(frozen=True)
class FunctionReward(RewardSource):
    """Score responses by a function `(prompts, responses, **fields) -> list of numbers`.

    It may be plain or `async`. It gets each prompt as its record has it: text, or a chat as a
    sequence of messages. Further arguments get a list each, one value a row, by their name:
    a field of the records, or `messages`, the chat with the response as its last turn. A function
    with an argument `completions` is called as TRL calls its own.

    NaN or None is the score of a response that cannot be scored: PPO leaves it out.

    An object with `__call__` serves, too; its `state_dict` and `load_state_dict`, where it has
    them, keep its state in checkpoints.

    Attributes:
        function: the function itself, or where it is: `my_package.my_module:my_function` or
            `path/to/file.py:my_function`.
        timeout_s: seconds for all responses of a process, null for no limit.
        per_prompt: call it once for each prompt, with all samples of that prompt, so that it can
            compare them; else once for all prompts.
        num_parallel: calls at once, each in a thread, with one response or, with `per_prompt`, one
            prompt's samples; None makes one call after another. At its limit a call that has not
            ended is given up, and others keep their scores.
        failures: what becomes of the responses of a call that raises or takes too long: "error"
            ends the run, "leave_out" takes them as not to be scored, with a line in the log.
    """

    function: str | Callable[..., Any]
    timeout_s: float | None = 600.0
    per_prompt: bool = False
    num_parallel: int | None = None
    failures: Literal["error", "leave_out"] = "error"

    abstains = True

    def __post_init__(self) -> None:
        """Look the function up at once, so that a misspelt path stops before training."""
        require("FunctionReward.timeout_s", self.timeout_s, above=0, is_optional=True)
        require("FunctionReward.num_parallel", self.num_parallel, least=1, is_optional=True)
        self.resolve()

    @property
    def compares_samples(self) -> bool:
        """With `per_prompt`."""
        return self.per_prompt

    @property
    def leaves_out_failures(self) -> bool:
        """As `failures` says."""
        return self.failures == "leave_out"

    @property
    def name(self) -> str:
        """How messages name the function."""
        if isinstance(self.function, str):
            return self.function
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`.

        Raises:
            RewardError: the function raised, or did not return one number for each response.
        """
        fields = [{} for _ in prompts] if batch is None else batch.fields
        calls = [list(range(len(prompts)))] if prompts else []
        if self.per_prompt:
            calls = rows_by_prompt(prompts, batch)
        elif self.num_parallel is not None:
            calls = [[row] for row in range(len(prompts))]
        given = [
            tuple([column[row] for row in rows] for column in (prompts, responses, fields))
            for rows in calls
        ]
        device = None if batch is None else batch.rows.lengths.device
        scores = torch.empty(len(prompts), device=device)
        for rows, found in zip(calls, self._score_all(given), strict=True):
            scores[rows] = torch.tensor(found, dtype=torch.float32, device=device)
        return scores

    def _score_all(self, calls: Sequence[tuple[Any, ...]]) -> list[list[float]]:
        """Return the scores of each call, made one after another or at once."""
        if self.num_parallel is None:
            return [self._score(*one) for one in calls]
        limit_s = None if self.timeout_s is None else _SHARE_OF_LIMIT * self.timeout_s
        start = time.monotonic()
        scores = []
        with ThreadPool(self.num_parallel) as threads:  # daemons: one that hangs keeps nobody
            begun = [(threads.apply_async(self._score, one), one) for one in calls]
            for result, (prompts, responses, _) in begun:
                left_s = None if limit_s is None else max(0.0, start + limit_s - time.monotonic())
                try:
                    scores.append(result.get(left_s))
                except multiprocessing.TimeoutError:
                    fault = f"has not answered within {self.timeout_s:g} s (timeout_s)"
                    scores.append(self._failed(fault, None, prompts, responses))
        return scores

    def _score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        fields: Sequence[Mapping[str, Any]],
    ) -> list[float]:
        function = self.resolve()
        try:
            positional, named = _arguments(function, prompts, responses, fields)
            returned = function(*positional, **named)
            if inspect.isawaitable(returned):
                returned = _wait_for(returned)
            return _as_numbers(returned, len(responses))
        except _MisfitError as misfit:
            raise self._error(str(misfit), prompts, responses) from None
        except Exception as error:
            fault = f"raised {type(error).__name__}: {error} ({place_of(error)})"
            return self._failed(fault, error, prompts, responses)

    def _failed(
        self,
        fault: str,
        error: Exception | None,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
    ) -> list[float]:
        """Return NaN for the responses of a call that failed, or raise, as `failures` says."""
        told = self._error(fault, prompts, responses)
        if not self.leaves_out_failures:
            raise told from error
        _log.warning("%s; %d responses are left out", told, len(responses))
        return [math.nan] * len(responses)

    def resolve(self) -> RewardFunction:
        """Return the function itself.

        Raises:
            ConfigError: it cannot be imported, or is not a function.
        """
        return import_function(self.function) if isinstance(self.function, str) else self.function

    def state_dict(self) -> dict[str, Any]:
        """Return the state of an object that has one."""
        function = self.resolve()
        own: Callable[[], dict[str, Any]] | None = getattr(function, "state_dict", None)
        return {} if own is None else own()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the state back to the object."""
        self.resolve().load_state_dict(state)  # type: ignore[attr-defined]  # it gave the state

    def _error(
        self, fault: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> RewardError:
        rows = first_rows(prompts, responses)
        return RewardError(f"reward function {self.name} {fault}. It was called with {rows}")


def as_source(reward: object) -> RewardSource:
    """Return a reward as it is, and a plain function as `FunctionReward`.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(reward, RewardSource):
        return reward
    if not callable(reward) or isinstance(reward, type):
        raise ConfigError(
            f"model.reward: {reward!r:.60} is neither a reward nor a function; pass a function, or "
            "an instance such as FunctionReward(...) or LearnedReward(...)"
        )
    return FunctionReward(reward)


# What a function may call its first two parameters, although records have such fields.
_ANSWERED = frozenset({"prompt", "prompts", "response", "responses", "completion"})


# Not one number for each response, or nobody knows for which one.
_WITHOUT_ORDER = (str, bytes, Mapping, set, frozenset)


class _MisfitError(Exception):
    """What a function takes or returns that does not fit, as a message goes on behind its name."""


def _arguments(
    function: RewardFunction,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    fields: Sequence[Mapping[str, Any]],
) -> tuple[tuple[Any, ...], dict[str, Sequence[Any]]]:
    """Return what a function is called with: positional, and by name."""
    names = dict.fromkeys(name for row in fields for name in row)
    columns: dict[str, Sequence[Any]] = {name: [row.get(name) for row in fields] for name in names}
    parameters = _parameters(function)
    if "messages" in columns and "messages" in parameters:
        raise _MisfitError(
            "takes `messages`, the chat with the response, and the records have a field of that "
            "name: give the field another one by data.columns, such as {earlier: messages}"
        )
    columns.setdefault("messages", list(map(_whole_chat, prompts, responses)))
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    positional: tuple[Any, ...] = ()
    if "completions" in parameters:  # TRL's
        columns |= {"prompts": list(prompts), "completions": _completions(prompts, responses)}
    elif _takes_by_name(parameters):
        columns |= {"prompts": prompts, "responses": responses}
    else:
        positional = (prompts, responses)
        for name in list(parameters)[:2]:
            if name in columns and name not in _ANSWERED:
                raise _MisfitError(
                    f"has `{name}` where prompts and responses are handed on, and the records have "
                    "such a field: call its parameters `prompts` and `responses`"
                )
            del parameters[name]
            columns.pop(name, None)
    named = {name: column for name, column in columns.items() if takes_all or name in parameters}
    for name, one in parameters.items():
        is_optional = one.default is not one.empty or one.kind in (
            one.VAR_KEYWORD,
            one.VAR_POSITIONAL,
        )
        if not is_optional and name not in named:
            known = ", ".join(names) or "none"
            raise _MisfitError(
                f"takes `{name}`, but the records have no such field (they have: {known})"
            )
    return positional, named


def _parameters(function: RewardFunction) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:  # of a builtin
        return {}


def _takes_by_name(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Say whether a function has `responses`, and not as its second parameter."""
    own = parameters.get("responses")
    return own is not None and (
        own.kind is own.KEYWORD_ONLY or list(parameters).index("responses") != 1
    )


def _whole_chat(prompt: Prompt, response: Response) -> list[Message]:
    return [*as_messages(prompt, "user"), *as_messages(response, "assistant")]


def _completions(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Any]:
    """Return responses as TRL has them: a text to a text, messages to a chat."""
    return [
        response if isinstance(prompt, str) else list(as_messages(response, "assistant"))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _wait_for(awaitable: Awaitable[Any]) -> Any:  # noqa: ANN401 - the function's own
    """Run an `async` function to its end, also beside a loop that runs (a notebook's)."""

    async def result() -> Any:  # noqa: ANN401 - likewise
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(result())
    outcome: list[Any] = []
    fault: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(result()))
        except Exception as error:
            fault.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return outcome[0]


def _as_numbers(returned: Any, num_responses: int) -> list[float]:  # noqa: ANN401 - anything
    expected = "it must return one number for each response"
    if isinstance(returned, Tensor) and returned.requires_grad:
        raise _MisfitError(f"returned a tensor that requires grad; {expected}: scores.detach()")
    if len(shape := getattr(returned, "shape", ())) > 1:
        raise _MisfitError(
            f"returned an array of shape {list(shape)}; {expected}: [{num_responses}]"
        )
    if not isinstance(returned, Iterable) or isinstance(returned, _WITHOUT_ORDER):
        raise _MisfitError(f"returned {returned!r:.80}; {expected}")
    scores = []
    for score in returned:
        try:
            scores.append(math.nan if score is None else float(score))
        except (TypeError, ValueError):
            raise _MisfitError(
                f"returned {score!r:.80} as score {len(scores)}; {expected}"
            ) from None
    if len(scores) != num_responses:
        raise _MisfitError(
            f"returned {len(scores)} scores for {num_responses} responses; {expected}"
        )
    return scores
