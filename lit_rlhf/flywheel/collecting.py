"""Asking labelers about the tasks of a round, until nobody needs to be asked any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.exc import OperationalError

from lit_rlhf.errors import DataError, LitRLHFError
from lit_rlhf.feedback.adding import Origin
from lit_rlhf.feedback.judgments import JudgedTask, num_compared
from lit_rlhf.feedback.schema import dump_json
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel.labelers import People
from lit_rlhf.flywheel.settings import FlywheelSettings


class WaitingError(LitRLHFError):
    """People have not yet judged all tasks of a round; the run goes on when it is started again."""


def collect(
    store: FeedbackStore,
    asked: Sequence[JudgedTask],
    origin: Origin,
    settings: FlywheelSettings,
    say: Callable[[str], None],
    *,
    waits: bool,
) -> list[int]:
    """Put tasks into the store, and return when each has the judgments that it needs.

    Args:
        store: the feedback store.
        asked: comparisons without judgments.
        origin: of their responses.
        settings: slots, labeler and early stop.
        say: prints a line.
        waits: wait for people; else end where judgments are missing.

    Returns:
        The ids of the tasks.

    Raises:
        WaitingError: `waits` is false, and people have not judged all of them.
    """
    # Where an earlier run added them, closed slots open again for a moment: `slots` may be more.
    store.add_tasks(asked, slots=settings.slots, origin=origin)
    ids = store.ids_of(asked, origin=origin)
    if isinstance(settings.labeler, People):
        _wait_for_people(store, ids, settings, settings.labeler.poll_s, say, waits=waits)
    else:
        _ask_machine(store, ids, settings)
    return ids


def check_store(store: FeedbackStore, earlier: Sequence[JudgedTask], folder: Path) -> None:
    """Refuse a store that lacks what earlier rounds learned from.

    Args:
        store: of this round.
        earlier: judged tasks of the rounds before.
        folder: where they are kept.

    Raises:
        DataError: one of them is not there.
    """
    known = set(map(_content, store.judged_tasks(question="")))
    if lost := sum(_content(task) not in known for task in earlier):
        raise DataError(
            f"{store.database}: lacks {lost} judged tasks of earlier rounds; name their store, or "
            f"bring them back: lit-rlhf feedback import {folder / 'full.jsonl'} {store.database}"
        )


def _ask_machine(store: FeedbackStore, ids: Sequence[int], settings: FlywheelSettings) -> None:
    store_labelers: set[str] = set()
    _close_done(store, ids, settings)
    waiting, tasks = store.open_slots(ids), store.tasks(ids)
    # Asked again after a kill, a language model may say something else: its first answer counts.
    answered = {(task.id, said.labeler) for task in tasks for said in task.content.judgments}
    for task_id, judgment in settings.labeler.judge(tasks, settings.slots):
        if judgment.labeler is not None and judgment.labeler not in store_labelers:
            store.add_labeler(judgment.labeler, "model")
            store_labelers.add(judgment.labeler)
        if task_id in waiting and (task_id, judgment.labeler) not in answered:
            store.submit(task_id, judgment)
            if _close_done(store, [task_id], settings):
                del waiting[task_id]
    for task_id in store.open_slots(ids):  # that the machine could not judge
        store.close_task(task_id)


def _wait_for_people(
    store: FeedbackStore,
    ids: Sequence[int],
    settings: FlywheelSettings,
    poll_s: float,
    say: Callable[[str], None],
    *,
    waits: bool,
) -> None:
    said = None
    while True:
        try:
            _close_done(store, list(store.open_slots(ids)), settings)
            waiting = store.open_slots(ids)
        except OperationalError as error:  # its server starts again, or the network is gone
            if not waits:
                raise
            line = f"the feedback store does not answer: {str(error.orig).strip()}"
        else:
            if not waiting:
                return
            line = f"{sum(waiting.values())} judgments of {len(waiting)} tasks are missing"
        again = f"{line}; run the same command again later"
        if not waits:
            raise WaitingError(again)
        if line != said:
            say(f"{line}; waiting (end with Ctrl-C, and start again at any time)")
            said = line
        try:
            time.sleep(poll_s)
        except KeyboardInterrupt:
            raise WaitingError(again) from None


def _content(task: JudgedTask) -> str:
    return dump_json([task.prompt, task.responses])


def _close_done(store: FeedbackStore, ids: Sequence[int], settings: FlywheelSettings) -> int:
    """Ask nobody else about tasks that are decided or have `slots` judgments; return how many."""
    stop = settings.early_stop
    done = [
        task.id
        for task in store.tasks(ids)
        if num_compared(task.content) >= settings.slots or (stop and stop.is_decided(task))
    ]
    for task_id in done:
        store.close_task(task_id)
    return len(done)
