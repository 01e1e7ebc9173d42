"""A share of the labelers and of the groups: what one member of an ensemble learns from."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.errors import DataError
from lit_rlhf.ranges import require

_JUDGMENTS = ("ratings", "rankings")


@dataclass(frozen=True)
class Subset:
    """Which part of the training data is used.

    Attributes:
        raters: share of the labelers of each judged group, in (0, 1]; at least one is kept. The
            same places of the lists are kept in all groups of as many labelers, so that a labeler
            who is always at one place is in or out as a person.
        rows: share of the rows (judged groups), in (0, 1]; at least one is kept.
        seed: another one takes another part.

    Raises:
        ConfigError: a share is out of range.
    """

    raters: float = 1.0
    rows: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require("data.subset.raters", self.raters, above=0, most=1)
        require("data.subset.rows", self.rows, above=0, most=1)

    def choose(self, records: Records) -> Records:
        """Return the records that are used, in their order, with the labelers that are.

        A record that has no lists of labelers, where they are to be chosen, is a DataError when
        it is read.
        """
        if self.rows < 1:
            num_kept = max(1, round(self.rows * len(records)))
            draw = random.Random(f"{self.seed}/rows")
            records = records.select(sorted(draw.sample(range(len(records)), num_kept)))
        return records if self.raters == 1 else records.changed(self)

    def __call__(self, sourced: SourcedRecord) -> SourcedRecord:
        """Return a record with fewer labelers; raise a DataError where it has no lists of them."""
        field = next((name for name in _JUDGMENTS if sourced.record.get(name) is not None), None)
        labelers = None if field is None else sourced.record[field]
        if field is None or not isinstance(labelers, list | tuple):
            raise DataError(
                f"{sourced.where}: data.subset.raters {self.raters} chooses among the lists of "
                "'ratings' or 'rankings', and this row has none; set it to 1"
            )
        # By a rank of the place alone: groups of other sizes agree as far as they can.
        places = sorted(
            range(len(labelers)), key=lambda place: random.Random(f"{self.seed}/{place}").random()
        )
        kept = sorted(places[: max(1, round(self.raters * len(labelers)))])
        changed: dict[str, object] = {field: [labelers[place] for place in kept]}
        names = sourced.record.get("labelers")
        if isinstance(names, list | tuple) and len(names) == len(labelers):
            changed["labelers"] = [names[place] for place in kept]
        return sourced._replace(record=sourced.record | changed)
