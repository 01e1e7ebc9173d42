"""Data for supervised fine-tuning: demonstrations, one row of tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.batches import TokenRows
from lit_rlhf.data.chat_template import RenderedText, render_demonstration
from lit_rlhf.data.collation import GroupExample, collate_rows, padding_id
from lit_rlhf.data.datamodule import EmptyResponses, TextDataModule, check_at_least, refuse_empty
from lit_rlhf.data.sources import Records, SourcedRecord
from lit_rlhf.data.tokenization import (
    LengthLimit,
    Overlong,
    Row,
    limit_of_rows,
    tokenize_rows,
)
from lit_rlhf.feedback import parse_demonstration


class SFTDataModule(TextDataModule[Row, TokenRows]):
    """Demonstrations as `TokenRows`; the response's tokens count, of chats every assistant turn."""

    preparation = (*TextDataModule.preparation, "append_eos", "empty_responses")

    def __init__(
        self,
        tokenizer: str,
        *,
        max_length: int = 1024,
        overlong: Overlong = "error",
        append_eos: bool = True,
        empty_responses: EmptyResponses = "error",
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name, a Hugging Face folder or a checkpoint.
                On the command line it is the model's.
            max_length: most tokens in a row, prompt and response.
            overlong: what becomes of a longer row: "error" stops before training; "truncate" cuts
                the response's end, and its EOS with it; "drop" leaves the row out.
            append_eos: end each response with the EOS token, where its text does not.
            empty_responses: what becomes of a response without text: "error" stops before training;
                "keep" takes it as it is, its EOS alone.
            **kwargs: the settings of `TextDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        check_at_least(2, max_length=max_length)
        self.max_length = max_length
        self.overlong: Overlong = overlong
        self.append_eos = append_eos
        self.empty_responses: EmptyResponses = empty_responses

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check and tokenise demonstrations, one row each."""
        texts = [self._render(record, where) for record, where in records]
        rows = tokenize_rows(self.tokenizer, texts, append_eos=self.append_eos)
        return [GroupExample((row,), ()) for row in rows]

    def example(self, records: Records, index: int, group: GroupExample) -> Row:
        """Return the demonstration's one row."""
        return group.rows[0]

    def _render(self, row: dict[str, object], where: str) -> RenderedText:
        record = parse_demonstration(row, where)
        turns = record.messages or ()
        responses = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if self.empty_responses == "error":
            for response in responses if record.response is None else [record.response]:
                refuse_empty(response, where)
        return render_demonstration(self.tokenizer, record, self.template, where)

    def collate(self, examples: Sequence[Row]) -> TokenRows:
        """Pad rows to the longest."""
        return collate_rows(examples, padding_id(self.tokenizer))

    def stand_in(self, example: Row) -> Row:
        """Return the row with an all-False response mask."""
        return example._replace(response_mask=[False] * len(example.input_ids))

    def length_limit(self) -> LengthLimit:
        """Return the most tokens of prompt and response."""
        return limit_of_rows(self.max_length, self.context_length)
