"""Data for supervised fine-tuning: demonstrations, one row of tokens each."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlhf.batches import TokenRows
from lit_rlhf.data.chat_template import RenderedText, render_demonstration
from lit_rlhf.data.collation import GroupExample, collate_rows, padding_id
from lit_rlhf.data.datamodule import ResponseDataModule
from lit_rlhf.data.sources import Records, SourcedRecord
from lit_rlhf.data.tokenization import Row, tokenize_rows
from lit_rlhf.feedback import parse_demonstration


class SFTDataModule(ResponseDataModule[Row, TokenRows]):
    """Demonstrations as `TokenRows`; the response's tokens count, of chats every assistant turn."""

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
        self.refuse_empty(responses if record.response is None else [record.response], where)
        return render_demonstration(self.tokenizer, record, self.template, where)

    def collate(self, examples: Sequence[Row]) -> TokenRows:
        """Pad rows to the longest."""
        return collate_rows(examples, padding_id(self.tokenizer))

    def stand_in(self, example: Row) -> Row:
        """Return the row with an all-False response mask."""
        return example._replace(response_mask=[False] * len(example.input_ids))
