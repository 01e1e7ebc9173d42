"""From records to examples: checked, tokenised on the disk, and cut or dropped at the limit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.data.records import Records
from lit_rlhf.data.sources import source_name
from lit_rlhf.data.summary import check_judgments, describe, warn_of_skipped, warn_of_unused
from lit_rlhf.data.tables import TokenTable, tokenize_records
from lit_rlhf.errors import DataError
from lit_rlhf.ranks import rank

if TYPE_CHECKING:
    from lit_rlhf.data.datamodule import TextDataModule


def read_examples(
    data: TextDataModule[Any, Any],
    name: str,
    records: Records,
    worker: TextDataModule[Any, Any],
) -> TokenTable[Any]:
    """Read the examples of "train", "validation", "test" or "predict", and tell what they are.

    Args:
        data: has the settings.
        name: of the source.
        records: of the source.
        worker: likewise, but light enough to be sent to other processes.

    Raises:
        DataError: a record is not as expected, or nothing is left.
    """
    shown = source_name(data.sources[name])
    table = tokenize_records(records, worker, _inputs(data, name, records.sha256))
    examples = TokenTable(table, partial(data.example, records))
    bad = [error for error in table.with_format("arrow")[:]["error"].to_pylist() if error]
    bad += map(
        str,
        examples.fit(
            data.length_limit(), data.overlong, lambda index: records[index].where, data.bad_rows
        ),
    )
    if not examples:
        raise DataError(
            f"{shown}: all {len(records)} rows are too long and were dropped; raise the "
            "length limit."
        )
    if data.kind == "judgment" and name == "train":
        check_judgments(examples, shown)
    if rank() == 0:
        warn_of_skipped(bad, len(records), shown)
        warn_of_unused(table, shown, data.kind)
    rank_zero_info(describe(examples, data.kind, shown, records.shape))
    return examples


def _inputs(data: TextDataModule[Any, Any], name: str, sha256: str) -> dict[str, object] | None:
    """Return all that the tokens depend on; None where we cannot know."""
    classes = [cls for cls in type(data).__mro__ if hasattr(cls, "prepare")]
    # Of a class from elsewhere we do not know when its code changes.
    if not all(cls.__module__.startswith("lit_rlhf.") for cls in classes):
        return None
    return {
        "source": sha256,
        "name": name,
        "limit": data.limits.get(name),
        "maker": type(data).__qualname__,
        "settings": {setting: repr(getattr(data, setting)) for setting in data.preparation},
        "tokenizer": data.tokenizer_digest,
    }
