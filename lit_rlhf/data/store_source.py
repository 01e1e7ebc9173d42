"""The feedback store as data: `store:sqlite:///feedback.db?split=train&question=harmless`."""

from __future__ import annotations

import json
from urllib.parse import unquote_plus

from lit_rlhf.data.records import PLACE, Records, json_features, keep_table
from lit_rlhf.errors import DataError
from lit_rlhf.extras import require_extra

_OPTIONS = ("split", "question")
# Changes where the same judgments become other rows than before.
_VERSION = 2


def open_store(source: str, split: str | None) -> Records:
    """Open the judged tasks of one split of a store, as judged groups with their labelers.

    Args:
        source: `store:` and the store's address, with `?split=NAME` where another split than the
            data module asks for is meant, and `?question=NAME` where labelers answered several
            questions about the same responses.
        split: "train", "validation" or "test".

    Returns:
        The tasks in which somebody compared responses; `sha256` is that of the judgments' ids, and
        `facts` has the id of the newest one.

    Raises:
        DataError: there is no such store, split or question, labelers answered several questions
            and none is named, or nobody judged any of the tasks.
        ConfigError: the store's packages are not installed.
    """
    require_extra("feedback", "a feedback store as data")
    from lit_rlhf.feedback.exchange import training_row  # noqa: PLC0415 - optional packages
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415

    address, options = _read_options(source.removeprefix("store:"))
    chosen, question = options.get("split", split), options.get("question")
    with (
        FeedbackStore.open(address, create=False) as store,
        store.snapshot(chosen, question) as (lineage, judged),
    ):
        store.check_question(question)
        rows = ((number, training_row(task)) for number, task in enumerate(judged))
        place = f"{store.database}#{chosen}"
        if not lineage.number:
            raise DataError(f"{place}: nobody has judged anything yet.")
        table = keep_table(
            "stores",
            {"judgments": lineage.digest, "split": chosen, "version": _VERSION},
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


def _read_options(source: str) -> tuple[str, dict[str, str]]:
    """Return the address without our options, and the options."""
    address, _, query = source.partition("?")
    parts = [part.partition("=") for part in query.split("&") if part]
    options = {name: unquote_plus(value) for name, _, value in parts if name in _OPTIONS}
    others = "&".join("".join(part) for part in parts if part[0] not in _OPTIONS)
    if others and not address.startswith("postgres"):  # whose addresses have options of their own
        raise DataError(f"store:{source}: unknown '{others}'; there are: {', '.join(_OPTIONS)}.")
    return f"{address}?{others}" if others else address, options
