"""The records that people's feedback comes in, and how one row becomes one.

The shapes, with an example of each, are described in docs/data.md. A row is a JSON object or a
row of a Hugging Face data set; `where` names its place and is in every error. `parse_prompt` hands
on the fields that a record does not know; of other records `unused_fields` names those that look
meant.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import (
    Record,
    is_present,
    missing_fields,
    read_conversation,
    read_list,
    read_number,
    read_plain_text,
    read_text,
    read_text_or_conversation,
    wrong_field,
)
from lit_rlhf.feedback.meant_fields import is_unpaired, read_probability, with_system
from lit_rlhf.feedback.prompts import split_prompt, unanswered, with_tools
from lit_rlhf.prompts import Prompt, Response

LabelerScores = tuple[float | None, ...]
# A weight beyond this is a slip: the row would be all that is learned.
_LARGEST_WEIGHT = 1e6
# Fields with responses, whose chats may begin with the prompt.
_ANSWERS = ("responses", "chosen", "rejected", "response", "completion", "messages")


@dataclass(frozen=True)
class Demonstration:
    """What a model should say: the turns of the assistant in `response`."""

    prompt: Prompt
    response: Response


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and how likely `chosen` is the better one."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    probability: float = 1.0
    weight: float = 1.0

    @property
    def responses(self) -> tuple[Response, Response]:
        """The two responses, `chosen` first, as a judged group has them."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class JudgedGroup:
    """Two or more responses to one prompt, judged by one labeler or more.

    Exactly one of `rankings` and `ratings` is set. Both hold one entry a labeler, and in it one
    number a response, None where the labeler did not judge it. A ranking holds positions (the
    smaller, the better; equal positions are a tie), a rating holds scores (the larger, the better).
    `labelers` says whose the entries are, None where one is not named.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    rankings: tuple[LabelerScores, ...] | None = None
    ratings: tuple[LabelerScores, ...] | None = None
    weight: float = 1.0
    labelers: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Unpaired:
    """One response to a prompt, and whether it is a good one (KTO's rows)."""

    prompt: Prompt
    response: Response
    is_good: bool
    weight: float = 1.0


@dataclass(frozen=True)
class PromptRecord:
    """A prompt to respond to, with the further fields of its row for the reward source."""

    prompt: Prompt
    fields: dict[str, object]


def parse_demonstration(row: Record, where: str) -> Demonstration:
    """Read `prompt` with `response` (or `completion`), or `messages`, or a bare `text`.

    A bare `text` is a response to the empty prompt; of `messages` all that begins with the
    assistant's first turn is the response. `system` becomes the first turn.

    Raises:
        DataError: the row is none of these, a field is not as expected, or the row's `label` says
            that the response is a bad one.
    """
    if is_unpaired(row) and not row["label"]:
        raise DataError(
            f"{where}: field 'label': {row['label']!r} says that the answer is a bad one (KTO's "
            "rows), and a demonstration would teach it. Leave the row out, or set data.bad_rows to "
            "'skip' to learn from the good ones alone. Where 'label' means something else, give "
            "it another name: columns: {other: label}."
        )
    for field in ("response", "completion"):
        if is_present(row, field):
            prompt, (response,) = split_prompt(row, {field: row[field]}, where)
            return Demonstration(prompt=complete_prompt(prompt, row, where), response=response)
    if is_present(row, "messages"):
        messages = read_conversation(row["messages"], "messages", where)
        if all(message["role"] != "assistant" for message in messages):
            raise wrong_field(where, "messages", "a turn of the role 'assistant'", messages)
        if messages[0]["role"] == "assistant":
            expected = "a turn before the assistant's first, for it to respond to"
            raise wrong_field(where, "messages", expected, messages[0])
        first = [message["role"] for message in messages].index("assistant")
        return Demonstration(complete_prompt(messages[:first], row, where), messages[first:])
    if is_present(row, "text"):
        text = read_plain_text(row["text"], "text", where)
        return Demonstration(prompt="", response=text)
    raise missing_fields(row, where, "'prompt' and 'response', or 'messages', or 'text'")


def parse_comparison(row: Record, where: str) -> Comparison:
    """Read `prompt`, `chosen`, `rejected` and, where given, `probability` and `weight`.

    `chosen` and `rejected` may be chats that begin with the prompt. Where the row has no
    `probability` and rates both alike (`score_chosen`, `score_rejected`), they are a tie.

    Raises:
        DataError: a field is missing or not as expected, or `rejected` is rated better.
    """
    if not (is_present(row, "chosen") and is_present(row, "rejected")):
        raise missing_fields(row, where, "'prompt', 'chosen' and 'rejected'")
    responses = {field: row[field] for field in ("chosen", "rejected")}
    prompt, (chosen, rejected) = split_prompt(row, responses, where)
    prompt = complete_prompt(prompt, row, where)
    probability = read_probability(row, where)
    return Comparison(prompt, chosen, rejected, probability, read_weight(row, where))


def parse_judged_group(row: Record, where: str) -> JudgedGroup:
    """Read `prompt`, `responses` and either `rankings` or `ratings`; `weight`, `labelers` if given.

    Raises:
        DataError: a field is missing or not as expected, both or neither of `rankings` and
            `ratings` are given, or a labeler's list is not as long as `responses`.
    """
    if not is_present(row, "responses"):
        raise missing_fields(row, where, "'prompt', 'responses' and 'rankings' or 'ratings'")
    items = read_list(row["responses"], "responses", where, "a list of two responses or more")
    if len(items) < 2:
        raise wrong_field(where, "responses", "two responses or more", items)
    if is_present(row, "rankings") == is_present(row, "ratings"):
        raise missing_fields(row, where, "either 'rankings' or 'ratings' beside 'responses'")
    values = {f"responses[{i}]": item for i, item in enumerate(items)}
    prompt, responses = split_prompt(row, values, where)
    return JudgedGroup(
        complete_prompt(prompt, row, where),
        responses,
        rankings=_read_judgments(row, "rankings", len(responses), where),
        ratings=_read_judgments(row, "ratings", len(responses), where),
        weight=read_weight(row, where),
        labelers=_read_labelers(row, where),
    )


def parse_judgment(row: Record, where: str) -> Comparison | JudgedGroup:
    """Read a judged group where the row has `responses`, else a comparison.

    Raises:
        DataError: the row is neither, or a field is not as expected.
    """
    if is_present(row, "responses"):
        return parse_judged_group(row, where)
    if is_present(row, "chosen") or is_present(row, "rejected"):
        return parse_comparison(row, where)
    raise missing_fields(
        row, where, "'prompt' with 'chosen' and 'rejected', or with 'responses' and their judgments"
    )


def parse_unpaired(row: Record, where: str) -> Unpaired:
    """Read `prompt`, `completion` (or `response`) and `label`, or `messages` and `label`.

    Raises:
        DataError: a field is missing or not as expected.
    """
    if not is_unpaired(row):
        raise missing_fields(row, where, "'prompt', 'completion' and 'label' (true or false)")
    field = next(name for name in ("response", "completion", "messages") if is_present(row, name))
    answer, beside = row[field], row
    if field == "messages":
        messages = read_conversation(answer, field, where)
        answer, beside = messages[-1:], {"prompt": list(messages[:-1])}
    prompt, (response,) = split_prompt(beside, {field: answer}, where)
    prompt = complete_prompt(prompt, row, where)
    return Unpaired(prompt, response, bool(row["label"]), read_weight(row, where))


def parse_prompt(row: Record, where: str) -> PromptRecord:
    """Read `prompt`; every other field is kept for the reward source, `system` among them.

    Raises:
        DataError: `prompt` is missing or not as expected.
    """
    if not is_present(row, "prompt"):
        raise missing_fields(row, where, "'prompt'")
    prompt = unanswered(read_text_or_conversation(row["prompt"], "prompt", where), where)
    fields = {key: row[key] for key in row if key != "prompt"}
    return PromptRecord(complete_prompt(prompt, row, where), fields)


def parse_any_prompt(row: Record, where: str) -> PromptRecord:
    """Read the prompt of a row of any kind: of prompts, demonstrations, comparisons or groups.

    Raises:
        DataError: there is no prompt, or a field is not as expected.
    """
    if not is_present(row, "prompt") or any(is_present(row, field) for field in _ANSWERS):
        prompt, _ = parse_responses(row, where)
        return PromptRecord(prompt, {key: row[key] for key in row if key != "prompt"})
    return parse_prompt(row, where)


def parse_responses(row: Record, where: str) -> tuple[Prompt, tuple[Response, ...]]:
    """Read the prompt and the responses of a row of any kind, judged or not.

    Raises:
        DataError: there is no prompt or response, or a field is not as expected.
    """
    if is_present(row, "responses"):
        items = read_list(row["responses"], "responses", where, "a list of responses")
        if not items:
            raise wrong_field(where, "responses", "one response or more", items)
        values = {f"responses[{index}]": item for index, item in enumerate(items)}
    elif is_present(row, "chosen") and is_present(row, "rejected"):
        values = {field: row[field] for field in ("chosen", "rejected")}
    else:
        demonstration = parse_demonstration({**row, "label": None}, where)
        return demonstration.prompt, (demonstration.response,)
    prompt, responses = split_prompt(row, values, where)
    return complete_prompt(prompt, row, where), responses


def complete_prompt(prompt: Prompt, row: Record, where: str) -> Prompt:
    """Return a prompt with the system text and the tools that its row has beside it.

    Raises:
        DataError: they are not as expected, or do not fit the prompt.
    """
    return with_tools(with_system(prompt, row, where), row, where)


def read_weight(row: Record, where: str) -> float:
    """Return how much a row counts: its `weight`, or 1."""
    if not is_present(row, "weight"):
        return 1.0
    weight = read_number(row["weight"], "weight", where, low=0)
    if weight > _LARGEST_WEIGHT:
        expected = f"a weight of at most {_LARGEST_WEIGHT:g}: 1 is that of a row without one"
        raise wrong_field(where, "weight", expected, row["weight"])
    return weight


def _read_judgments(
    row: Record, field: str, num_responses: int, where: str
) -> tuple[LabelerScores, ...] | None:
    if not is_present(row, field):
        return None
    labelers = read_list(row[field], field, where, "one list a labeler")
    if not labelers:
        raise wrong_field(where, field, "one labeler or more", labelers)
    judgments = []
    for i, labeler in enumerate(labelers):
        place = f"{field}[{i}]"
        expected = f"a list of {num_responses} numbers or nulls, one for each response"
        scores = read_list(labeler, place, where, expected)
        if len(scores) != num_responses:
            raise wrong_field(where, place, expected, labeler)
        judgments.append(tuple(_read_score(score, place, where) for score in scores))
    return tuple(judgments)


def _read_labelers(row: Record, where: str) -> tuple[str | None, ...] | None:
    if not is_present(row, "labelers"):
        return None
    field = "rankings" if is_present(row, "rankings") else "ratings"
    expected = f"a list of names or nulls, one for each list of '{field}'"
    names = read_list(row["labelers"], "labelers", where, expected)
    judgments = read_list(row[field], field, where, "one list a labeler")
    if len(names) != len(judgments):
        raise wrong_field(where, "labelers", expected, names)
    return tuple(None if name is None else read_text(name, "labelers", where) for name in names)


def _read_score(value: object, field: str, where: str) -> float | None:
    return None if value is None else read_number(value, field, where)
