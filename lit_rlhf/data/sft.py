"""Data for supervised fine-tuning: demonstrations as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

from lit_rlhf.batches import TokenRows
from lit_rlhf.data.chat_template import RenderedText
from lit_rlhf.data.collation import GroupExample, collate_rows, padding_id
from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.responses import ResponseDataModule
from lit_rlhf.data.sources import TokenizerSource
from lit_rlhf.data.tokenization import tokenize_rows
from lit_rlhf.feedback import parse_demonstration

Learn = Literal["all", "last"]


class SFTDataModule(ResponseDataModule[TokenRows]):
    """Demonstrations as `TokenRows`; `batch_size` counts demonstrations.

    A demonstration is one row, or one a learned turn where the chat template renders earlier
    turns differently.
    """

    preparation = (*ResponseDataModule.preparation, "learn")

    def __init__(self, tokenizer: TokenizerSource, *, learn: Learn = "all", **kwargs: Any) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            learn: of a chat, "all" turns of the assistant or the "last"; never those that say
                `train: false` or `weight: 0`.
            **kwargs: the settings of `ResponseDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        self.learn: Learn = learn

    kind = "demonstration"

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check and tokenise demonstrations."""
        rendered = [self._render(record, where) for record, where in records]
        texts = [text for turns in rendered for text in turns]
        rows = iter(tokenize_rows(self.tokenizer, texts, append_eos=self.append_eos))
        return [GroupExample(tuple(islice(rows, len(turns))), ()) for turns in rendered]

    def _render(self, row: dict[str, object], where: str) -> list[RenderedText]:
        record = parse_demonstration(row, where)
        self.refuse_empty([record.response], where)
        return self.renderer.for_policy(
            record.prompt, record.response, where, last_only=self.learn == "last"
        )

    def collate(self, examples: Sequence[GroupExample]) -> TokenRows:
        """Pad rows to the longest."""
        rows = [row for example in examples for row in example.rows]
        return collate_rows(rows, padding_id(self.tokenizer))
