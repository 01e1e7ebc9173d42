"""Data of compared responses, for reward models and DPO alike.

A row is a judged group, or a comparison, which is the smallest one. All pairs of a group that
anybody judged are used; its responses are tokenised once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.data.chat_template import RenderedText
from lit_rlhf.data.collation import GroupExample, collate_groups, padding_id
from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.data.responses import ResponseDataModule
from lit_rlhf.data.sources import TokenizerSource
from lit_rlhf.data.subset import Subset
from lit_rlhf.data.tokenization import tokenize_rows
from lit_rlhf.data.unpaired import has_labels
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback import Comparison, JudgedGroup, JudgedPair, parse_judgment
from lit_rlhf.feedback.aggregation import Aggregation, BetaMean, mean_ratings
from lit_rlhf.prompts import Prompt, Response, response_text

_SHARES = BetaMean(prior=0)
# Records that are read from the disk at once.
_READ_TOGETHER = 1000


class RenderedGroup(NamedTuple):
    """A judged group before it is tokenised; the ratings are empty where there are none."""

    pairs: list[JudgedPair]
    responses: list[RenderedText]
    ratings: list[float]


class ComparisonDataModule(ResponseDataModule[ComparisonBatch]):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups.

    Attributes:
        is_for_reward: render what a reward model reads; else what a policy learns to say.
        labels: what rows with labels are called, which a source may have in place of comparisons.
        loss_of_labels: the loss that reads them.
    """

    preparation = (*ResponseDataModule.preparation, "subset", "aggregation", "is_for_reward")
    kind = "judgment"
    is_for_reward: ClassVar[bool] = False
    labels: ClassVar[str]
    loss_of_labels: ClassVar[str]

    def __init__(
        self,
        tokenizer: TokenizerSource,
        *,
        subset: Subset = Subset(),
        aggregation: Aggregation = BetaMean(),
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            subset: the share of labelers and rows of the training data that is used, drawn before
                `limit_train`: another one for each member of an ensemble.
            aggregation: how the judgments of several labelers become the probability that is
                trained on: `BetaMean`, `BradleyTerry`, `PlackettLuce` or `OneCoinDawidSkene`.
                Held-out data keep the shares of the labelers, which results are measured against.
            **kwargs: the settings of `ResponseDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        self.subset = subset
        self.aggregation = aggregation
        self._fitted: Aggregation = _SHARES

    def choose(self, name: str, records: Records) -> Records:
        """Return the subset of the training data, and all of the others."""
        self._fitted = _SHARES
        if name != "train":
            return records
        chosen = self.subset.choose(records)
        learns = self.aggregation.learns
        self._fitted = self.aggregation.fit(_judgments(chosen)) if learns else self.aggregation
        return chosen

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check, aggregate and tokenise judged groups."""
        groups = [self._render_group(record, where) for record, where in records]
        texts = [text for group in groups for text in group.responses]
        rows = iter(tokenize_rows(self.tokenizer, texts, append_eos=self.append_eos))
        return [
            GroupExample(
                tuple(islice(rows, len(group.responses))), tuple(group.pairs), tuple(group.ratings)
            )
            for group in groups
        ]

    def collate(self, examples: Sequence[GroupExample]) -> ComparisonBatch:
        """Put all rows of the groups into one padded batch."""
        return collate_groups(examples, padding_id(self.tokenizer))

    def pairs(
        self, judgment: Comparison | JudgedGroup, row: dict[str, object], where: str
    ) -> list[JudgedPair]:
        """Return the pairs of a row that somebody judged."""
        return self._fitted.pairs(judgment)

    def _render_group(self, row: dict[str, object], where: str) -> RenderedGroup:
        """Return the pairs of a row, and the responses in any of them with their ratings."""
        judgment = parse_judgment(row, where)
        pairs = self.pairs(judgment, row, where)
        if not pairs:
            raise DataError(
                f"{where}: no labeler judged two responses of this group, so there is nothing to "
                "compare. Leave the row out, or have it judged."
            )
        responses = judgment.responses
        self._check_responses(responses, where)
        texts_of = [response_text(response).strip() for response in responses]
        pairs = [pair for pair in pairs if texts_of[pair.chosen] != texts_of[pair.rejected]]
        judged = sorted({index for pair in pairs for index in (pair.chosen, pair.rejected)})
        texts = [self._render(judgment.prompt, responses[i], where) for i in judged]
        new_index = {old: new for new, old in enumerate(judged)}
        pairs = [
            pair._replace(chosen=new_index[pair.chosen], rejected=new_index[pair.rejected])
            for pair in pairs
        ]
        return RenderedGroup(pairs, texts, _ratings(judgment, judged))

    def _render(self, prompt: Prompt, response: Response, where: str) -> RenderedText:
        if self.is_for_reward:
            return self.renderer.for_reward(prompt, response, where)
        texts = self.renderer.for_policy(prompt, response, where)
        if len(texts) > 1:
            raise DataError(
                f"{where}: the chat template renders an earlier turn of the response differently "
                "once a later one follows, so that they make no single row. Compare single turns; "
                "or, where it drops earlier thinking, set data.thinking to drop."
            )
        return texts[0]

    def _require_kind(self, loss: str, *, reads_labels: bool) -> None:
        """Raise a ConfigError for comparisons where a loss reads labels, or the reverse."""
        kinds = {True: self.labels, False: "comparisons"}
        for name, examples in self._examples.items():
            if has_labels(examples) != reads_labels:
                other = "another loss than " if reads_labels else ""
                raise ConfigError(
                    f"model.loss {loss} reads {kinds[reads_labels]}, but data.{name} has "
                    f"{kinds[not reads_labels]}: choose {other}{self.loss_of_labels}, or other data"
                )

    def _check_responses(self, responses: Sequence[Response], where: str) -> None:
        if len({response_text(response).strip() for response in responses}) == 1:
            shown = response_text(responses[0])[:40]
            raise DataError(
                f"{where}: all responses are the same text ({shown!r}), so there is "
                "nothing to compare. Leave the row out."
            )
        self.refuse_empty(responses, where)


def _ratings(judgment: Comparison | JudgedGroup, judged: Sequence[int]) -> list[float]:
    """Return the mean rating of each judged response, NaN where nobody rated it."""
    if isinstance(judgment, Comparison) or judgment.ratings is None:
        return []
    means = mean_ratings(judgment)
    return [math.nan if (mean := means[i]) is None else mean for i in judged]


def _judgments(records: Records) -> Iterator[Comparison | JudgedGroup]:
    """Yield the judgments of all records but the bad ones, which `prepare` reports."""
    for start in range(0, len(records), _READ_TOGETHER):
        for record, where in records.read(records.table[start : start + _READ_TOGETHER]):
            try:
                judgment = parse_judgment(record, where)
            except DataError:
                continue
            yield judgment
