"""Data of compared responses, for reward models and DPO alike.

A row is a judged group, or a comparison, which is the smallest one. All pairs of a group that
anybody judged are used; its responses are tokenised once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.data.chat_template import RenderedText, render_for_reward, render_response
from lit_rlhf.data.collation import GroupExample, collate_groups, padding_id
from lit_rlhf.data.datamodule import EmptyResponses, TextDataModule, check_at_least, refuse_empty
from lit_rlhf.data.sources import Records, SourcedRecord
from lit_rlhf.data.subset import Subset
from lit_rlhf.data.tokenization import LengthLimit, Overlong, limit_of_rows, tokenize_rows
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import JudgedPair, judged_pairs, parse_judgment


class ComparisonDataModule(TextDataModule[GroupExample, ComparisonBatch]):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups.

    Attributes:
        is_for_reward: render what a reward model reads; else what a policy learns to say.
    """

    preparation = (
        *TextDataModule.preparation,
        "append_eos",
        "empty_responses",
        "subset",
        "is_for_reward",
    )
    is_for_reward: ClassVar[bool] = False

    def __init__(
        self,
        tokenizer: str,
        *,
        max_length: int = 1024,
        overlong: Overlong = "error",
        append_eos: bool = True,
        empty_responses: EmptyResponses = "error",
        subset: Subset = Subset(),
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name, a Hugging Face folder or a checkpoint.
                On the command line it is the model's.
            max_length: most tokens in a row, prompt and response.
            overlong: what becomes of a longer row: "error" stops before training; "truncate" cuts
                the response's end, and its EOS with it; "drop" leaves out the whole group.
            append_eos: end each response with the EOS token, where its text does not.
            empty_responses: what becomes of a response without text: "error" stops before training;
                "keep" takes it as it is, its EOS alone.
            subset: the share of labelers and rows of the training data that is used, drawn before
                `limit_train`: another one for each member of an ensemble.
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
        self.subset = subset

    def choose(self, name: str, records: Records) -> Records:
        """Return the subset of the training data, and all of the others."""
        return self.subset.choose(records) if name == "train" else records

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check, aggregate and tokenise judged groups."""
        groups = [self._render_group(record, where) for record, where in records]
        texts = [text for _, responses in groups for text in responses]
        rows = iter(tokenize_rows(self.tokenizer, texts, append_eos=self.append_eos))
        return [
            GroupExample(tuple(islice(rows, len(responses))), tuple(pairs))
            for pairs, responses in groups
        ]

    def example(self, records: Records, index: int, group: GroupExample) -> GroupExample:
        """Return the group as it is."""
        return group

    def collate(self, examples: Sequence[GroupExample]) -> ComparisonBatch:
        """Put all rows of the groups into one padded batch."""
        return collate_groups(examples, padding_id(self.tokenizer))

    def stand_in(self, example: GroupExample) -> GroupExample:
        """Return the group without its pairs, and with no response token that counts."""
        rows = (row._replace(response_mask=[False] * len(row.input_ids)) for row in example.rows)
        return GroupExample(rows=tuple(rows), pairs=())

    def length_limit(self) -> LengthLimit:
        """Return the most tokens of prompt and response."""
        return limit_of_rows(self.max_length, self.context_length)

    def _render_group(
        self, row: dict[str, object], where: str
    ) -> tuple[list[JudgedPair], list[RenderedText]]:
        """Return the pairs of a row and the texts of the responses that stand in any of them."""
        judgment = parse_judgment(row, where)
        pairs = judged_pairs(judgment)
        if not pairs:
            raise DataError(
                f"{where}: no labeler judged two responses of this group, so there is nothing to "
                "compare. Leave the row out, or have it judged."
            )
        responses = judgment.responses
        self._check_responses(responses, where)
        judged = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
        render = render_for_reward if self.is_for_reward else render_response
        texts = [
            render(self.tokenizer, judgment.prompt, responses[i], self.template, where)
            for i in judged
        ]
        new_index = {old: new for new, old in enumerate(judged)}
        return [
            pair._replace(chosen=new_index[pair.chosen], rejected=new_index[pair.rejected])
            for pair in pairs
        ], texts

    def _check_responses(self, responses: Sequence[str], where: str) -> None:
        if len(set(responses)) == 1:
            raise DataError(
                f"{where}: all responses are the same text ({responses[0][:40]!r}), so there is "
                "nothing to compare. Leave the row out."
            )
        if self.empty_responses == "error":
            for response in responses:
                refuse_empty(response, where)
