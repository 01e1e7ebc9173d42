"""Data for `predict`: prompts to respond to, out of rows of any kind, or responses to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lit_rlhf.batches import ResponseBatch
from lit_rlhf.data.collation import GroupExample, collate_rows, padding_id
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.data.tokenization import (
    LengthLimit,
    Row,
    limit_of_rows,
    rows_for_reward,
)
from lit_rlhf.feedback import parse_any_prompt, parse_responses
from lit_rlhf.feedback.records import PromptRecord
from lit_rlhf.prompts import Prompt, Response

if TYPE_CHECKING:
    from lit_rlhf.data.responses import ResponseDataModule

# By which columns a row of prompts may be mapped: the others need not be there.
_OF_PROMPTS = ("prompt", "messages", "system", "tools")


class AnyPrompts(PPODataModule):
    """The prompts of rows of any kind, as the rows' own phase would read them."""

    def parse(self, record: SourcedRecord) -> PromptRecord:
        """Read the prompt that the row's responses respond to."""
        return parse_any_prompt(*record)


class ResponseExample(NamedTuple):
    """The rows and responses of one record; `record_id` is its place in the data set."""

    rows: tuple[Row, ...]
    record_id: int
    prompt: Prompt
    responses: tuple[Response, ...]


class ResponsesToScore(TextDataModule[ResponseExample, ResponseBatch]):
    """Responses of rows of any kind, judged or not, as a reward model reads them."""

    kind = "prompt"  # no judgment of theirs is missed
    overlong = "error"

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        """Keep the settings of `TextDataModule` and the most tokens of a row."""
        super().__init__(*args, **kwargs)
        self.max_length = max_length

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check and tokenise responses."""
        parsed = [parse_responses(*record) for record in records]
        examples = []
        for (prompt, responses), (_, where) in zip(parsed, records, strict=True):
            prompts, places = [prompt] * len(responses), [where] * len(responses)
            rows = rows_for_reward(self.renderer, prompts, responses, places)
            examples.append(GroupExample(tuple(rows), ()))
        return examples

    def example(self, records: Records, index: int, group: GroupExample) -> ResponseExample:
        """Return the responses with their rows."""
        return ResponseExample(group.rows, index, *parse_responses(*records[index]))

    def collate(self, examples: Sequence[ResponseExample]) -> ResponseBatch:
        """Pad the rows of all responses to the longest."""
        each = [(one, row) for one in examples for row in one.rows]
        return ResponseBatch(
            collate_rows([row for _, row in each], padding_id(self.tokenizer)),
            torch.tensor([one.record_id for one, _ in each], dtype=torch.int64),
            [one.prompt for one, _ in each],
            [response for one in examples for response in one.responses],
        )

    def stand_in(self, example: ResponseExample) -> ResponseExample:
        """Return the responses under the id -1, by which they are known not to count."""
        return example._replace(record_id=-1)

    def length_limit(self) -> LengthLimit:
        """Return the most tokens of prompt and response."""
        return limit_of_rows(self.max_length, self.context_length)


def prompts_of(data: ResponseDataModule[Any]) -> AnyPrompts:
    """Return the data module that reads the prompts for a phase's policy."""
    columns = {ours: name for ours, name in (data.columns or {}).items() if ours in _OF_PROMPTS}
    return AnyPrompts(
        **_shared(data), columns=columns or None, max_prompt_length=max(1, data.max_length - 1)
    )


def responses_of(data: ResponseDataModule[Any]) -> ResponsesToScore:
    """Return the data module that reads the responses for a reward model."""
    return ResponsesToScore(
        **_shared(data), columns=data.columns, format=data.format, max_length=data.max_length
    )


def _shared(data: TextDataModule[Any, Any]) -> dict[str, Any]:
    return {
        "tokenizer": data.tokenizer_source,
        "predict": data.sources["predict"],
        "batch_size": data.eval_batch_size,
        "id_field": data.id_field,
        **data.reading_settings(),
    }
