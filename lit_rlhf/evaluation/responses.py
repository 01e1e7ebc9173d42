"""What policies said to the same prompts: read from files, or filled by sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.sources import read_records
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import Floats
from lit_rlhf.feedback import Prompt, parse_prompt
from lit_rlhf.feedback.fields import is_present, read_list, read_text, wrong_field
from lit_rlhf.feedback.prompts import split_prompt
from lit_rlhf.feedback.records import complete_prompt
from lit_rlhf.prompts import ChatWithTools, response_text


class SourcedPrompt(NamedTuple):
    """A prompt and its place in the data, for errors."""

    prompt: Prompt
    where: str


class TokenFacts(NamedTuple):
    """What is known of responses only where the model that wrote them is at hand.

    Attributes:
        lengths: `[P, K]` tokens, the stop token included.
        summed_entropy: `[P, K]` nats, of the next-token distributions, summed over a response's
            tokens; None at temperature 0.
        kl: `[P, K]` nats per response, `log policy - log reference` of the sampled tokens; None
            without a reference or at temperature 0.
    """

    lengths: Floats
    summed_entropy: Floats | None
    kl: Floats | None


@dataclass(frozen=True)
class Responses:
    """The responses of one policy.

    Attributes:
        name: of the policy, as the report calls it.
        source: where it came from.
        texts: `P` lists of responses to each prompt, the same number `K` to all.
        finished: `[P, K]` bool, whether a response ended by itself; None where a file does not
            say.
        tokens: facts about tokens, or None for a file.
    """

    name: str
    source: str
    texts: tuple[tuple[str, ...], ...]
    finished: npt.NDArray[np.bool_] | None = None
    tokens: TokenFacts | None = None

    @property
    def num_samples(self) -> int:
        """Responses to each prompt, `K`."""
        return len(self.texts[0])

    @property
    def characters(self) -> Floats:
        """Length of each response: `[P, K]` characters."""
        return np.array([[len(text) for text in row] for row in self.texts], np.float64)


def prompt_key(prompt: Prompt) -> str:
    """Return what tells one prompt from another."""
    if isinstance(prompt, str):
        return prompt
    tools = list(prompt.tools) if isinstance(prompt, ChatWithTools) else []
    return json.dumps([*prompt, *tools], sort_keys=True)


def read_prompts(source: str, limit: int | None = None) -> list[SourcedPrompt]:
    """Read the prompts of a data source, each once, in its order.

    Args:
        source: a file, folder or hub name, see `data.read_records`; fields beside `prompt` are left
            out, so that a file of responses serves as well.
        limit: take the first so many.

    Raises:
        DataError: the source cannot be read, or a row has no prompt.
    """
    return [prompt for prompt, _ in read_prompts_and_fields(source, limit)]


def read_prompts_and_fields(
    source: str, limit: int | None = None
) -> list[tuple[SourcedPrompt, dict[str, Any]]]:
    """Read prompts as `read_prompts` does, each with the further fields of its first row."""
    prompts: dict[str, tuple[SourcedPrompt, dict[str, Any]]] = {}
    for row, where in read_records(source, split="test"):
        parsed = parse_prompt(row, where)
        sourced = SourcedPrompt(parsed.prompt, where)
        prompts.setdefault(prompt_key(parsed.prompt), (sourced, dict(parsed.fields)))
    return list(prompts.values())[:limit]


def read_responses(name: str, source: str, prompts: Sequence[SourcedPrompt]) -> Responses:
    """Read a file of responses: rows of `prompt` with `response`, `completion` or `responses`.

    Several rows of one prompt are several samples. `finished` (true or false, with `responses` a
    list of them) says whether a response ended by itself.

    Args:
        name: of the policy.
        source: the file.
        prompts: `P` prompts to find there; others in the file are left out.

    Raises:
        DataError: a row is not as expected, a prompt has no response, or prompts have different
            numbers of responses.
    """
    texts: dict[str, list[str]] = {}
    ends: dict[str, list[bool | None]] = {}
    for row, where in read_records(source, split="test"):
        prompt, responses, finished = _read_row(SourcedRecord(row, where))
        texts.setdefault(prompt_key(prompt), []).extend(responses)
        ends.setdefault(prompt_key(prompt), []).extend(finished)
    keys = [prompt_key(prompt) for prompt, _ in prompts]
    missing = [place for key, (_, place) in zip(keys, prompts, strict=True) if key not in texts]
    if missing:
        raise DataError(
            f"{source}: has no response to {len(missing)} of {len(prompts)} prompts, for one that "
            f"of {missing[0]}; policies are compared on the same prompts. Add the responses, or "
            "leave these prompts out."
        )
    numbers = sorted({len(texts[key]) for key in keys})
    if len(numbers) > 1:
        raise DataError(
            f"{source}: some prompts have {numbers[0]} responses and others {numbers[-1]}; give "
            "each the same number."
        )
    known = [ends[key] for key in keys]
    says = all(end is not None for row in known for end in row)
    return Responses(
        name,
        source,
        tuple(tuple(texts[key]) for key in keys),
        np.array(known, dtype=np.bool_) if says else None,
    )


def _read_row(sourced: SourcedRecord) -> tuple[Prompt, tuple[str, ...], list[bool | None]]:
    row, where = sourced
    if is_present(row, "responses"):
        items = read_list(row["responses"], "responses", where, "a list of responses")
        fields = {f"responses[{index}]": item for index, item in enumerate(items)}
    else:
        field = "completion" if is_present(row, "completion") else "response"
        fields = {field: read_text(row.get(field), field, where)}
    prompt, responses = split_prompt(row, fields, where)
    prompt = complete_prompt(prompt, row, where)
    if not responses:
        raise wrong_field(where, "responses", "one response or more", row["responses"])
    texts = tuple(response_text(response) for response in responses)
    return prompt, texts, _read_finished(row.get("finished"), len(responses), where)


def _read_finished(value: object, num_responses: int, where: str) -> list[bool | None]:
    items = value if isinstance(value, list) else [value] * num_responses
    ends = [item for item in items if item is None or isinstance(item, bool)]
    if len(ends) != len(items) or len(items) != num_responses:
        raise wrong_field(where, "finished", "true or false, one a response", value)
    return ends
