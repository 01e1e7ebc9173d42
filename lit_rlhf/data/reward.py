"""Data for reward modelling: judged groups, comparisons, or answers judged step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.comparisons import ComparisonDataModule, RenderedGroup
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.predicting import responses_of
from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.sources import TokenizerSource
from lit_rlhf.data.stepwise import at_step_ends, mark_steps, step_labels
from lit_rlhf.data.tables import Examples, TokenTable
from lit_rlhf.data.unpaired import all_labelled
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback import Comparison, JudgedGroup, JudgedPair
from lit_rlhf.feedback.fields import is_present, read_number
from lit_rlhf.feedback.steps import is_stepwise, parse_steps


class RewardDataModule(ComparisonDataModule):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups.

    Rows of a `prompt`, `completions` and `labels` are answers in steps: see `data/stepwise.py`. A
    source has one kind of rows.
    """

    preparation = (*ComparisonDataModule.preparation, "margin")
    is_for_reward = True
    labels = "steps (prompt, completions, labels)"
    loss_of_labels = "StepLoss"

    def __init__(self, tokenizer: TokenizerSource, *, margin: bool = False, **kwargs: Any) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            margin: `chosen` is to score more than `rejected` by what each row has as `margin`.
            **kwargs: the settings of `ComparisonDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        self.margin = margin

    def prediction_reader(self) -> TextDataModule[Any, Any]:
        """Return the reader of responses."""
        return responses_of(self)

    @property
    def used_fields(self) -> tuple[str, ...]:
        """The fields that settings make use of."""
        return ("margin",) if self.margin else ()

    def pairs(
        self, judgment: Comparison | JudgedGroup, row: dict[str, object], where: str
    ) -> list[JudgedPair]:
        """Return the pairs of a row with their margins; one of its own belongs to a comparison."""
        found = super().pairs(judgment, row, where)
        if not self.margin:
            return found
        if isinstance(judgment, JudgedGroup) or not is_present(row, "margin"):
            raise DataError(
                f"{where}: data.margin is true, and this row has no 'margin' between 'chosen' and "
                "'rejected'. Give it one (0 for none), or set data.margin to false."
            )
        margin = read_number(row["margin"], "margin", where)
        # A pair whose probability is below one half is turned round.
        return [pair._replace(margin=margin if pair.chosen == 0 else -margin) for pair in found]

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check, aggregate and tokenise; of answers in steps, let only the steps' ends count."""
        return [
            example._replace(
                rows=tuple(at_step_ends(row, len(example.pairs), where) for row in example.rows)
            )
            if is_stepwise(record)
            else example
            for example, (record, where) in zip(super().prepare(records), records, strict=True)
        ]

    def completed(self, examples: TokenTable[GroupExample], source: str) -> Examples[GroupExample]:
        """Refuse a source with both kinds of rows, or steps that would be cut."""
        has_steps = all_labelled(examples, source)
        if has_steps and self.overlong == "truncate":
            raise ConfigError(
                f"data.overlong truncate would cut steps off {source}, and leave their labels; "
                "set it to drop or error"
            )
        return examples

    def require_rows_for(
        self, loss: str, *, reads_steps: bool, needs_whole_rankings: bool = False
    ) -> None:
        """Refuse rows that a loss does not read, before anything is computed.

        Args:
            loss: its name, for the message.
            reads_steps: it reads labels of steps.
            needs_whole_rankings: it needs every pair of a prompt's responses.

        Raises:
            ConfigError: a source has comparisons, and steps are read, or the reverse; or the
                training data have rankings that are not whole, and these are needed.
        """
        self._require_kind(loss, reads_labels=reads_steps)
        train = self._examples.get("train")
        if needs_whole_rankings and isinstance(train, TokenTable):
            responses, pairs = train.counts("lengths"), train.counts("weight")
            num_partial = int((pairs != responses * (responses - 1) // 2).sum())
            if num_partial:
                raise ConfigError(
                    f"model.loss {loss} needs whole rankings, but of {num_partial:,} of "
                    f"{len(train):,} prompts of data.train only some pairs of responses were "
                    "judged; choose BradleyTerryLoss, which learns from any pairs"
                )

    def _render_group(self, row: dict[str, object], where: str) -> RenderedGroup:
        if not is_stepwise(row):
            return super()._render_group(row, where)
        record = parse_steps(row, where)
        text = self._render(record.prompt, record.response, where)
        return RenderedGroup(step_labels(record), [mark_steps(text, record, where)], [])
