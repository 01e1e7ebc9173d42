"""OpenAssistant: trees of messages, where people ranked the answers to a message, 0 the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record, read_list, read_number, read_text
from lit_rlhf.feedback.formats.parts import (
    ReadResult,
    RowFormat,
    has,
    read_labeler,
    read_object,
    read_objects,
    rest,
)
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.prompts import Conversation, Message

_ROLES = {"prompter": "user", "assistant": "assistant"}


def _detects(row: Record) -> bool:
    is_tree = isinstance(row.get("prompt"), Mapping) and has(row, "message_tree_id")
    return is_tree or has(row, "message_tree_id", "message_id", "text", "role")


def _read(row: Record, where: str) -> ReadResult:
    if not isinstance(row.get("prompt"), Mapping):
        raise DataError(
            f"{where}: a single message of OASST, which does not hold the answers that it was "
            "ranked with. Read the file of trees (..._trees.jsonl.gz) instead."
        )
    tasks: list[JudgedTask] = []
    _walk(read_object(row.get("prompt"), "prompt", where), (), rest(row, "prompt"), tasks, where)
    return [*tasks]


def _walk(
    node: Mapping[str, object],
    before: Conversation,
    metadata: dict[str, object],
    tasks: list[JudgedTask],
    where: str,
) -> None:
    """Append the judged answers to a message, and to all that follow it."""
    text = read_text(node.get("text"), "text", where)
    chat = (*before, Message(role=_ROLES.get(str(node.get("role")), ""), content=text))
    replies = [
        reply
        for reply in read_objects(node.get("replies") or [], "replies", where)
        if not reply.get("deleted") and reply.get("review_result") is not False
    ]
    judgments = _judgments(node, replies, where)
    if chat[-1]["role"] == "user" and len(replies) > 1 and judgments:
        responses = tuple(read_text(reply.get("text"), "text", where) for reply in replies)
        about = {**metadata, "message_id": node.get("message_id")}
        tasks.append(JudgedTask(chat, responses, judgments, None, about))
    for reply in replies:
        _walk(reply, chat, metadata, tasks, where)


def _judgments(
    node: Mapping[str, object], replies: Sequence[Mapping[str, object]], where: str
) -> tuple[Judgment, ...]:
    """Return each person's ranking where the file has them, else the one that they agreed on."""
    events = read_object(node.get("events") or {}, "events", where)
    names = [reply.get("message_id") for reply in replies]
    people = []
    for event in read_objects(events.get("ranking") or [], "events.ranking", where):
        labeler = read_labeler(event.get("user_id"))
        if event.get("not_rankable"):
            people.append(Judgment("cannot_judge", labeler=labeler))
            continue
        order = read_list(event.get("ranked_message_ids"), "ranked_message_ids", where, "ids")
        places = tuple(order.index(name) + 1 if name in order else None for name in names)
        if sum(place is not None for place in places) > 1:  # the others were deleted since
            people.append(Judgment("judged", ranks=places, labeler=labeler))
    if people:
        return tuple(people)
    ranks = tuple(_rank(reply.get("rank"), where) for reply in replies)
    is_ranked = sum(rank is not None for rank in ranks) > 1
    return (Judgment("judged", ranks=ranks),) if is_ranked else ()


def _rank(value: object, where: str) -> int | None:
    return None if value is None else int(read_number(value, "rank", where, low=0)) + 1


OASST = RowFormat("oasst", _detects, _read)
