"""Records with their places, in Arrow files, read from there when they are asked for.

A record's place is in every error, so that whatever is wrong with it can be found and mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_rlhf import __version__
from lit_rlhf.cache import keep
from lit_rlhf.errors import DataError
from lit_rlhf.row_files import read_object

if TYPE_CHECKING:
    # `datasets` takes half a second to import, so it is imported where it is used.
    from datasets import Dataset, Features  # type: ignore[import-untyped] # has no stubs

# The column of a table that says where in the source a record is: `:3` or `[2]`.
PLACE = "lit_rlhf:place"
# The key of a record that could not be read, with the message of its error.
ERROR = "lit_rlhf:error"
# Counts up whenever the same inputs give other tables.
FORMAT = 5


class SourcedRecord(NamedTuple):
    """One line of data.

    Attributes:
        record: field name -> value, after renaming by `columns`.
        where: its place for error messages: `train.jsonl:3`, or `owner/name#train[3]`.
    """

    record: dict[str, object]
    where: str


@dataclass(frozen=True)
class Records(Sequence[SourcedRecord]):
    """The records of a source, read from the disk when they are asked for.

    A record that is not a JSON object, or lacks a field that `columns` names, is a DataError when
    it is read.

    Attributes:
        table: Arrow columns on the disk, `PLACE` among them: a record's place in the source.
        place: of the source, for error messages.
        sha256: of the source's content: of a file as `sha256sum` gives it, of a data set of its
            Arrow columns.
        is_json: the table has the records as JSON text.
        changes: of each record, in turn.
        shape: the format that the source's rows have, as `data.format` names it.
        facts: what else the lineage says of the source.
    """

    table: Dataset
    place: str
    sha256: str
    is_json: bool
    changes: tuple[Callable[[SourcedRecord], SourcedRecord], ...] = ()
    shape: str = "ours"
    facts: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.table)

    def __getitem__(self, index: int) -> SourcedRecord:  # type: ignore[override] # no slices
        """Return one record."""
        if index >= len(self):
            raise IndexError(index)
        return self.read(self.table[index : index + 1])[0]

    def read(self, columns: Mapping[str, Sequence[Any]]) -> list[SourcedRecord]:
        """Return the records that some rows of the table hold: column -> values."""
        fields = [name for name in columns if name != PLACE]
        records = []
        for index, place in enumerate(columns[PLACE]):
            where = f"{self.place}{place}"
            values = {name: columns[name][index] for name in fields}
            record = read_object(values["json"], where) if self.is_json else values
            if ERROR in record:
                raise DataError(str(record[ERROR]))
            sourced = SourcedRecord(record, where)
            for change in self.changes:
                sourced = change(sourced)
            records.append(sourced)
        return records

    def each(self) -> Iterator[SourcedRecord | tuple[DataError, str]]:
        """Yield the records in their order, and for a bad one its error and its place."""
        for columns in self.table.iter(1000):
            for index, place in enumerate(columns[PLACE]):
                try:
                    yield self.read({name: [values[index]] for name, values in columns.items()})[0]
                except DataError as error:
                    yield error, f"{self.place}{place}"

    def select(self, indices: Sequence[int]) -> Records:
        """Return the records at these indices, in that order."""
        return replace(self, table=self.table.select(indices))

    def changed(self, change: Callable[[SourcedRecord], SourcedRecord]) -> Records:
        """Return the records as `change` makes them."""
        return replace(self, changes=(*self.changes, change))


def json_features() -> Features:
    """Return the columns of a table of records as JSON text."""
    from datasets import Features, Value  # noqa: PLC0415 - see above

    return Features({"json": Value("binary"), PLACE: Value("string")})


def keep_table(
    kind: str,
    inputs: Mapping[str, object],
    generator: Callable[[], Iterator[dict[str, object]]],
    features: Features | None,
) -> Dataset:
    """Write records into Arrow files as they come, unless an earlier run did."""
    import datasets  # noqa: PLC0415 - see above

    def make(folder: Path) -> Dataset:
        try:
            return datasets.Dataset.from_generator(
                generator, features, str(folder), fingerprint="records"
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None

    return keep(kind, {"format": FORMAT, "lit_rlhf": __version__, **inputs}, make)


def records_of_dataset(table: Dataset, place: str) -> Records:
    """Return the rows of a data set as records; their digest is that of its columns.

    It is the same however they are cut into chunks on the disk.
    """
    digest = hashlib.sha256(str(table.features).encode())
    for rows in table.with_format("arrow").iter(1000):
        for batch in rows.combine_chunks().to_batches():
            digest.update(batch.serialize())
    table = table.add_column(PLACE, [f"[{index}]" for index in range(len(table))])
    return Records(table, place, digest.hexdigest(), is_json=False)
