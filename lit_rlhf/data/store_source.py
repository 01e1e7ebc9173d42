"""The feedback store as a source of data: `store:sqlite:///feedback.db?split=train`."""

from __future__ import annotations

import json
import re

from lit_rlhf.data.records import PLACE, Records, json_features, keep_table
from lit_rlhf.errors import DataError
from lit_rlhf.extras import require_extra

_SPLIT = re.compile(r"[?&]split=(\w+)$")


def open_store(source: str, split: str | None) -> Records:
    """Open the judged tasks of one split of a store, as judged groups with their labelers.

    Args:
        source: `store:` and the store's address, with `?split=NAME` where another split than the
            data module asks for is meant.
        split: "train", "validation" or "test".

    Returns:
        The tasks in which somebody compared responses; `sha256` is that of the judgments' ids, and
        `facts` has the id of the newest one.

    Raises:
        DataError: there is no such store or split, or nobody judged any of its tasks.
        ConfigError: the store's packages are not installed.
    """
    require_extra("feedback", "a feedback store as data")
    from lit_rlhf.feedback.exchange import training_row  # noqa: PLC0415 - optional packages
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415

    address = source.removeprefix("store:")
    named = _SPLIT.search(address)
    chosen = named[1] if named else split
    with (
        FeedbackStore.open(_SPLIT.sub("", address), create=False) as store,
        store.snapshot(chosen) as (lineage, judged),
    ):
        rows = ((number, training_row(task)) for number, task in enumerate(judged))
        place = f"{store.database}#{chosen}"
        if not lineage.number:
            raise DataError(f"{place}: nobody has judged anything yet.")
        table = keep_table(
            "stores",
            {"judgments": lineage.digest, "split": chosen},
            lambda: (
                {"json": json.dumps(row).encode(), PLACE: f"[{number}]"}
                for number, row in rows
                if row is not None
            ),
            json_features(),
        )
    if not len(table):
        raise DataError(f"{place}: nobody has compared responses yet.")
    facts = {"judgments": lineage.number, "newest_judgment": lineage.newest}
    return Records(table, place, lineage.digest, is_json=True, facts=facts)
