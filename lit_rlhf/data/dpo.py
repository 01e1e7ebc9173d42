"""Data for direct preference optimisation: judged groups, comparisons, or labelled responses."""

from __future__ import annotations

from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.comparisons import ComparisonDataModule, RenderedGroup
from lit_rlhf.data.tables import Examples, TokenTable
from lit_rlhf.data.unpaired import WithUnrelated, all_labelled
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback import JudgedPair, parse_unpaired
from lit_rlhf.feedback.aggregation import BetaMean
from lit_rlhf.feedback.meant_fields import is_unpaired
from lit_rlhf.objectives.preference.loss import soft_labels_refused


class DPODataModule(ComparisonDataModule):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups.

    Rows of a `prompt`, a `response` and a `label` (KTO's) become pairs of the labelled response
    and one to another prompt, with the label as their probability. A source has one kind of rows.
    """

    labels = "labelled responses (prompt, response, label)"
    loss_of_labels = "KTO"

    def completed(self, examples: TokenTable[GroupExample], source: str) -> Examples[GroupExample]:
        """Give each labelled response one to another prompt."""
        if not all_labelled(examples, source):
            return examples
        if self.aggregation != BetaMean():
            raise ConfigError(
                f"data.aggregation {type(self.aggregation).__name__} has no effect on {source}: "
                "labelled responses have one label each; leave the option out"
            )
        if len(examples) < 2:
            raise DataError(
                f"{source}: one labelled response; KTO compares it with responses to other "
                "prompts, so two or more are needed."
            )
        return WithUnrelated(examples, self.length_limit().tokens)

    def require_rows_for(
        self, loss: str, *, is_unpaired: bool, takes_soft_labels: bool = True
    ) -> None:
        """Refuse rows that a loss does not read, before anything is computed.

        Args:
            loss: its name, for the message.
            is_unpaired: it reads labelled responses.
            takes_soft_labels: it reads probabilities other than 1. Held-out data may have them.

        Raises:
            ConfigError: a source has comparisons, and labelled responses are read, or the reverse;
                or the training data have soft labels that the loss does not take.
        """
        self._require_kind(loss, reads_labels=is_unpaired)
        train = self._examples.get("train")
        if not takes_soft_labels and isinstance(train, TokenTable):
            probability = train.values("probability")
            num_soft = int((probability != 1).sum())
            if num_soft:
                pairs = f"{num_soft:,} of {len(probability):,} pairs of data.train"
                raise ConfigError(soft_labels_refused(loss, pairs))

    def _render_group(self, row: dict[str, object], where: str) -> RenderedGroup:
        if not is_unpaired(row):
            return super()._render_group(row, where)
        record = parse_unpaired(row, where)
        self.refuse_empty([record.response], where)
        label = JudgedPair(0, 0, float(record.is_good), record.weight)
        text = self._render(record.prompt, record.response, where)
        return RenderedGroup([label], [text], [])
