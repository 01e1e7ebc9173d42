"""What was read: one line, and what a user should know about rows that teach nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_rlhf.data.tables import TokenTable
from lit_rlhf.errors import DataError
from lit_rlhf.feedback.meant_fields import Kind

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped] # has no stubs

_NOUNS: dict[Kind, str] = {
    "demonstration": "demonstrations", "judgment": "comparisons", "prompt": "prompts"
}  # fmt: skip
# Reasons that are shown of the rows that were skipped.
_SHOWN = 3
# Of fewer pairs, one may well have most of the weight.
_FEW_PAIRS = 10

_log = logging.getLogger(__name__)


def describe(examples: TokenTable[Any], kind: Kind, source: str, shape: str) -> str:
    """Return what was read in one line: "60,917 comparisons, format ultrafeedback, 1,204 ties"."""
    noun = _NOUNS[kind]
    if kind != "judgment":
        return f"{source}: {len(examples):,} {noun}, format {shape}"
    probability, weight = examples.values("probability"), examples.values("weight")
    if (examples.values("chosen") == examples.values("rejected")).any():
        noun = "labels"
    parts = [f"{source}: {len(probability):,} {noun}"]
    if len(probability) != len(examples):
        parts[0] += f" in {len(examples):,} groups"
    parts.append(f"format {shape}")
    counts = {"ties": (probability == 0.5).sum(), "of weight 0": (weight == 0).sum()}
    return ", ".join(parts + [f"{count:,} {name}" for name, count in counts.items() if count])


def check_judgments(examples: TokenTable[Any], source: str) -> None:
    """Refuse comparisons of which nothing can be learned; warn where one is nearly all.

    Raises:
        DataError: all weights are 0, or all pairs are ties.
    """
    probability, weight = examples.values("probability"), examples.values("weight")
    if not weight.any():
        raise DataError(f"{source}: all comparisons have weight 0: nothing would be learned.")
    if (probability[weight > 0] == 0.5).all():
        raise DataError(
            f"{source}: all comparisons are ties: no response is better than another, so nothing "
            "would be learned. Were the ratings or rankings written as they were given?"
        )
    share = weight.max() / weight.sum()
    if len(weight) > _FEW_PAIRS and share > 0.5:
        _log.warning("%s: one comparison has %.0f%% of all weight.", source, 100 * share)


def warn_of_unused(table: Dataset, source: str, kind: Kind) -> None:
    """Name the fields that look meant and that this phase does not use, once."""
    counts: Counter[str] = Counter()
    for names in table.with_format("arrow")[:]["unused"].to_pylist():
        counts.update(name for name in names.split(",") if name)
    if counts:
        _log.warning("%s: %s", source, name_unused(counts, kind))


def name_unused(counts: Mapping[str, int], kind: Kind) -> str:
    """Return a line about fields that look meant and that nothing uses: name -> its rows."""
    named = ", ".join(f"'{name}' ({count:,} rows)" for name, count in counts.items())
    margin = " The reward phase uses margins by data.margin true."
    return (
        f"fields that look meant, and that nothing uses here: {named}. docs/data.md lists those "
        "that are used; map other names by data.columns."
        + (margin if kind == "judgment" and "margin" in counts else "")
    )


def warn_of_skipped(errors: Sequence[str], num_rows: int, source: str) -> None:
    """Say how many rows were skipped, and why the first were."""
    if errors:
        reasons = " | ".join(errors[:_SHOWN])
        _log.warning(
            "%s: %s of %s rows are bad and were skipped (data.bad_rows): %s",
            source, f"{len(errors):,}", f"{num_rows:,}", reasons
        )  # fmt: skip
