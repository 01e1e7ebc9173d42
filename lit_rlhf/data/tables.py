"""Tokens on the disk: written once by `datasets.map`, read from memory-mapped Arrow files.

One process tokenises while the others wait; then all of them share the same pages of memory. The
folder of a table is named by all that the tokens depend on.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf import __version__
from lit_rlhf.cache import keep
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.records import FORMAT, PLACE, Records, SourcedRecord
from lit_rlhf.data.tokenization import IntArray, LengthLimit, Overlong, Row
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.feedback.meant_fields import unused_fields

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped] # has no stubs
    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.data.datamodule import TextDataModule

# Records that are tokenised at once.
RECORDS_AT_ONCE = 500
# Fewer records are tokenised before further processes would have started.
FEW_RECORDS = 10_000
MOST_PROCESSES = 8
# Of longer records, which take minutes, a line says so: the bar counts whole ones.
_MUCH_TEXT = 20_000_000

_NOTHING = GroupExample((), ())
# The columns of a table that hold a list in each row.
_LISTS = {
    "input_ids": np.int32,
    "response_mask": np.bool_,
    "lengths": np.int32,
    "chosen": np.int32,
    "rejected": np.int32,
    "probability": np.float64,
    "weight": np.float64,
    "ratings": np.float64,
    "margin": np.float64,
}
Example = TypeVar("Example")
BadRows = Literal["refuse", "skip"]


class Examples(Sequence[Example], Generic[Example]):
    """Examples with their lengths, for the loaders.

    Attributes:
        lengths: `[N]`, the tokens of each example's longest row.
    """

    lengths: IntArray


class TokenTable(Examples[Example]):
    """Examples on the disk; each is read when it is asked for.

    Attributes:
        lengths: `[N]`, the tokens of each example's longest row.
    """

    def __init__(self, table: Dataset, example: Callable[[int, GroupExample], Example]) -> None:
        """Take a table that `tokenize_records` wrote.

        Args:
            table: one row an example; those without rows of tokens are left out.
            example: makes an example of the index of its record and its rows of tokens.
        """
        self._table = table.with_format("arrow")
        self._example = example
        self._limit: LengthLimit | None = None
        lengths = self._table[:]["lengths"].combine_chunks()
        self._row_lengths: IntArray = lengths.flatten().to_numpy()
        self._num_rows: IntArray = lengths.value_lengths().to_numpy()
        self._kept: IntArray = np.flatnonzero(self._num_rows)
        first_rows = (np.cumsum(self._num_rows) - self._num_rows)[self._kept]
        self.lengths: IntArray = np.maximum.reduceat(self._row_lengths, first_rows)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override] # no slices
        """Read an example."""
        place = int(self._kept[index])
        group = self._group(place)
        if self._limit is not None:
            most = self._limit.tokens
            rows = (Row(ids[:most], mask[:most]) for ids, mask in group.rows)
            group = _distinct(group._replace(rows=tuple(rows)))
        return self._example(place, group)

    def fit(
        self,
        limit: LengthLimit,
        overlong: Overlong,
        where: Callable[[int], str],
        bad_rows: BadRows = "refuse",
    ) -> list[DataError]:
        """Apply the length limit: leave out the groups with a longer row, or cut these rows.

        Args:
            limit: of a row.
            overlong: what becomes of a longer row.
            where: index of a record -> its place.
            bad_rows: what becomes of a group of which nothing is left when its rows are cut.

        Returns:
            Of each group that was skipped, why.

        Raises:
            DataError: as `LengthLimit` says, or a group is bad and `bad_rows` is "refuse".
        """
        record_of_row = np.repeat(np.arange(len(self._num_rows)), self._num_rows)
        too_long = limit.find_longer(
            self._row_lengths, overlong, lambda row: where(int(record_of_row[row]))
        )
        longer = np.unique(record_of_row[too_long])
        if overlong == "drop":
            self._leave_out(longer)
            return []
        if not len(longer):
            return []
        skipped: dict[int, DataError] = {}
        for place in longer.tolist():
            try:
                _check_cut(self._group(place), limit, where(place))
            except DataError as error:
                if bad_rows == "refuse":
                    raise
                skipped[place] = error
        self._limit = limit
        self.lengths = np.minimum(self.lengths, limit.tokens)
        self._leave_out(np.array(list(skipped), dtype=np.int64))
        return list(skipped.values())

    def values(self, name: str) -> IntArray:
        """Return a column of the table, of all examples end to end: `weight` has one a pair."""
        lists = self._table[:][name].combine_chunks()
        kept = np.isin(np.arange(len(lists)), self._kept)
        counts = lists.value_lengths().to_numpy()
        values: IntArray = lists.flatten().to_numpy(zero_copy_only=False)
        return values[np.repeat(kept, counts)]

    def counts(self, name: str) -> IntArray:
        """Return how many values of a column each example has: of `weight`, its pairs."""
        counts: IntArray = self._table[:][name].combine_chunks().value_lengths().to_numpy()
        return counts[self._kept]

    def _leave_out(self, places: IntArray) -> None:
        kept = ~np.isin(self._kept, places)
        self._kept, self.lengths = self._kept[kept], self.lengths[kept]

    def _group(self, place: int) -> GroupExample:
        """Undo `_pack` for a row of the table."""
        row = self._table[place]
        lists = {
            name: row[name][0].values.to_numpy(zero_copy_only=False).tolist() for name in _LISTS
        }
        ends = list(accumulate(lists["lengths"], initial=0))
        rows = (
            Row(lists["input_ids"][start:end], lists["response_mask"][start:end])
            for start, end in pairwise(ends)
        )
        pairs = zip(*(lists[name] for name in JudgedPair._fields), strict=True)
        judged = tuple(JudgedPair(*pair) for pair in pairs)
        return GroupExample(tuple(rows), judged, tuple(lists["ratings"]))


def tokenize_records(
    records: Records, reader: TextDataModule[Any, Any], inputs: Mapping[str, object] | None
) -> Dataset:
    """Return the table of all records' tokens; make it where no earlier run did.

    Args:
        records: all of them.
        reader: whose `prepare` checks and tokenises some of them; it goes to other processes.
        inputs: all that the tokens depend on, as JSON can write it; None to keep nothing.

    Returns:
        A row for each record, for `TokenTable`, with the columns `error`, why it was skipped or
        "", and `unused`, the names of its fields that look meant, with commas.

    Raises:
        DataError: a record is not as expected and `reader.bad_rows` is "refuse", no record is, or
            one has the name of another.
    """
    num_proc = reader.num_proc
    if num_proc is None:
        few = len(records) < FEW_RECORDS
        num_proc = 1 if few else min(len(os.sched_getaffinity(0)), MOST_PROCESSES)

    def make(folder: Path) -> Dataset:
        return records.table.map(
            partial(_prepare_batch, records, reader),
            batched=True,
            batch_size=RECORDS_AT_ONCE,
            remove_columns=records.table.column_names,
            num_proc=num_proc if num_proc > 1 else None,  # alone, the tokenizer may use threads
            cache_file_name=str(folder / "tokens.arrow"),
            new_fingerprint=folder.name[:32],
            desc="Tokenising",
        )

    versions = {name: version(name) for name in ("transformers", "tokenizers")}
    # A table that an earlier version kept lacks the columns that came since.
    fixed = {"format": FORMAT, "lit_rlhf": __version__, "columns": list(_LISTS), **versions}
    table = keep("tokenized", None if inputs is None else {**fixed, **inputs}, make)
    first: dict[str, int] = {}
    for index, name in enumerate(table.with_format("arrow")[:]["name"].to_pylist()):
        if name is not None and first.setdefault(name, index) != index:
            raise DataError(
                f"{records[index].where}: field '{reader.id_field}': {name} is the name of "
                f"{records[first[name]].where} already. Give each row a name of its own, or set "
                "data.id_field to null if names may repeat."
            )
    errors = table.with_format("arrow")[:]["error"].to_pylist()
    if all(errors):
        raise DataError(f"All {len(errors)} rows are bad; the first: {errors[0]}")
    return table


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer: its files, chat template included, and today where it asks.

    Call it before the tokenizer is used: padding leaves traces in it.
    """
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    if "strftime_now" in str(tokenizer.chat_template):
        digest.update(datetime.datetime.now().astimezone().date().isoformat().encode())
    return digest.hexdigest()


def _prepare_batch(
    records: Records, reader: TextDataModule[Any, Any], batch: Mapping[str, Sequence[object]]
) -> dict[str, list[Any]]:
    """Return rows of the table of tokens for rows of the records' table.

    Each has the tokens of a group end to end, the lengths of its rows, and its pairs.
    """
    size = sum(len(text) for text in batch.get("json", ()) if isinstance(text, bytes))
    if size > _MUCH_TEXT:
        where = f"{records.place}{batch[PLACE][0]}"
        rank_zero_info(f"{where}: tokenising {size // 1_000_000:,} MB of text at once")
    found = read_and_prepare(records, reader, batch)
    groups = [_NOTHING if isinstance(item, DataError) else item[1] for item in found]
    rows = [{} if isinstance(item, DataError) else item[0].record for item in found]
    names = [None if reader.id_field is None else row.get(reader.id_field) for row in rows]
    columns: dict[str, list[Any]] = {"name": [None if n is None else repr(n) for n in names]}
    columns["error"] = [str(item) if isinstance(item, DataError) else "" for item in found]
    uses = reader.kind, reader.used_fields
    columns["unused"] = [",".join(unused_fields(row, *uses)) for row in rows]
    for name, dtype in _LISTS.items():
        columns[name] = [np.array(_values(group, name), dtype=dtype) for group in groups]
    return columns


def read_and_prepare(
    records: Records, reader: TextDataModule[Any, Any], batch: Mapping[str, Sequence[object]]
) -> list[tuple[SourcedRecord, GroupExample] | DataError]:
    """Return records with their groups; where they may be skipped, bad ones as their errors.

    A batch with a bad record is halved until that stands alone.
    """
    try:
        sourced = records.read(batch)
        groups = reader.prepare(sourced)
        for record, group in zip(sourced, groups, strict=True):
            _check_distinct(group, record.where)
        return [(record, _distinct(group)) for record, group in zip(sourced, groups, strict=True)]
    except DataError as error:
        if reader.bad_rows == "refuse":
            raise
        half = len(batch[PLACE]) // 2
        if half == 0:
            return [error]
    parts = ({n: v[:half] for n, v in batch.items()}, {n: v[half:] for n, v in batch.items()})
    return [item for part in parts for item in read_and_prepare(records, reader, part)]


def _distinct(group: GroupExample) -> GroupExample:
    """Return a group without the pairs whose two rows are the same tokens: they say nothing.

    A pair of a row with itself is a label on it (`data/unpaired.py`).
    """
    pairs = (
        pair
        for pair in group.pairs
        if pair.chosen == pair.rejected
        or group.rows[pair.chosen].input_ids != group.rows[pair.rejected].input_ids
    )
    return group._replace(pairs=tuple(pairs))


def _check_distinct(group: GroupExample, where: str) -> None:
    if group.pairs and not _distinct(group).pairs:
        raise DataError(
            f"{where}: the responses that were compared differ as texts, but are the same tokens: "
            "the length limit, the chat template or the tokenizer leaves out what tells them "
            "apart. Raise the limit, or leave the row out."
        )


def _check_cut(group: GroupExample, limit: LengthLimit, where: str) -> None:
    """Raise a DataError where cutting leaves no response token, or no difference."""
    cut = tuple(limit.cut(row, where) for row in group.rows)
    _check_distinct(group._replace(rows=cut), where)


def _values(group: GroupExample, name: str) -> list[Any]:
    if name == "lengths":
        return [len(row.input_ids) for row in group.rows]
    if name == "ratings":
        return list(group.ratings)
    if name in JudgedPair._fields:
        return [getattr(pair, name) for pair in group.pairs]
    return [value for row in group.rows for value in getattr(row, name)]
