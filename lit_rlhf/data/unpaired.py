"""Labelled responses as pairs: beside each one, a response that was given to another prompt.

KTO measures by the unrelated responses how far the policy has moved in general. Which response
goes with which prompt is fixed by the data, so that a reference scores each row once.
"""

from __future__ import annotations

import numpy as np

from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.tables import Examples, TokenTable
from lit_rlhf.data.tokenization import IntArray, Row
from lit_rlhf.errors import DataError


class WithUnrelated(Examples[GroupExample]):
    """Each labelled row, with the same prompt and the response of the row half the data further.

    Half the data, because neighbours often answer one prompt.

    Attributes:
        lengths: `[N]`, the tokens of the longer of both rows.
    """

    def __init__(self, labelled_rows: TokenTable[GroupExample], max_tokens: int) -> None:
        """Take the labelled rows.

        Args:
            labelled_rows: two or more groups of one row, whose pair is the row with itself.
            max_tokens: longer rows are cut.
        """
        self._rows = labelled_rows
        self._max_tokens = max_tokens
        self._shift = len(labelled_rows) // 2
        whole = labelled_rows.values("lengths")
        starts = np.cumsum(whole) - whole
        counted = np.flatnonzero(labelled_rows.values("response_mask"))
        prompts = counted[np.searchsorted(counted, starts)] - starts
        responses = np.minimum(whole, max_tokens) - prompts
        unrelated = prompts + np.roll(responses, -self._shift)
        self.lengths: IntArray = np.maximum(
            labelled_rows.lengths, np.minimum(unrelated, max_tokens)
        )

    def __len__(self) -> int:
        """Return the number of labelled responses."""
        return len(self._rows)

    def __getitem__(self, index: int) -> GroupExample:  # type: ignore[override] # no slices
        """Read an example: the labelled row, and the unrelated one."""
        group = self._rows[index]
        (label,), (row,) = group.pairs, group.rows
        other = self._rows[(index + self._shift) % len(self._rows)].rows[0]
        prompt, answer = row.response_mask.index(True), other.response_mask.index(True)
        unrelated = Row(
            (row.input_ids[:prompt] + other.input_ids[answer:])[: self._max_tokens],
            (row.response_mask[:prompt] + other.response_mask[answer:])[: self._max_tokens],
        )
        return GroupExample((row, unrelated), (label._replace(rejected=1),))


def has_labels(examples: Examples[GroupExample]) -> bool:
    """Say whether examples have labels, of which no source has others; see `all_labelled`."""
    first = examples[0].pairs[0]
    return isinstance(examples, WithUnrelated) or first.chosen == first.rejected


def all_labelled(examples: TokenTable[GroupExample], source: str) -> bool:
    """Say whether a source has labels on single responses or steps: rows paired with themselves.

    Raises:
        DataError: some have labels, and others are comparisons.
    """
    is_label = examples.values("chosen") == examples.values("rejected")
    if is_label.any() and not is_label.all():
        raise DataError(
            f"{source}: {is_label.sum():,} labels and {(~is_label).sum():,} comparisons in one "
            "source; a loss reads the one or the other, so give each a source of its own."
        )
    return bool(is_label.any())
