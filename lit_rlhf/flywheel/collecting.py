"""Asking labelers about the tasks of a round, until nobody needs to be asked any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.feedback.adding import Origin
from lit_rlhf.feedback.judgments import JudgedTask
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
) -> None:
    """Put tasks into the store, and return when each has the judgments that it needs.

    Args:
        store: the feedback store.
        asked: comparisons without judgments.
        origin: of their responses.
        settings: slots, labeler and early stop.
        say: prints a line.
        waits: wait for people; else end where judgments are missing.

    Raises:
        WaitingError: `waits` is false, and people have not judged all of them.
    """
    if not _are_there(store, asked, origin):
        store.add_tasks(asked, slots=settings.slots, origin=origin)
    ids = store.ids_of(asked, origin=origin)
    if isinstance(settings.labeler, People):
        _wait_for_people(store, ids, settings, settings.labeler.poll_s, say, waits=waits)
    else:
        _ask_machine(store, ids, settings)


def _are_there(store: FeedbackStore, asked: Sequence[JudgedTask], origin: Origin) -> bool:
    """Say whether an earlier run added the tasks: again, it would open slots that were closed."""
    try:
        store.ids_of(asked, origin=origin)
    except LitRLHFError:
        return False
    return True


def _ask_machine(store: FeedbackStore, ids: Sequence[int], settings: FlywheelSettings) -> None:
    store_labelers: set[str] = set()
    waiting = store.open_slots(ids)
    for task_id, judgment in settings.labeler.judge(store.tasks(ids), settings.slots):
        if judgment.labeler is not None and judgment.labeler not in store_labelers:
            store.add_labeler(judgment.labeler, "model")
            store_labelers.add(judgment.labeler)
        if task_id in waiting:
            store.submit(task_id, judgment)
            if _close_decided(store, [task_id], settings):
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
        _close_decided(store, list(store.open_slots(ids)), settings)
        waiting = store.open_slots(ids)
        if not waiting:
            return
        line = f"{sum(waiting.values())} judgments of {len(waiting)} tasks are missing"
        again = f"{line}; run the same command again when they are there"
        if not waits:
            raise WaitingError(again)
        if line != said:
            say(f"{line}; waiting (end with Ctrl-C, and start again at any time)")
            said = line
        try:
            time.sleep(poll_s)
        except KeyboardInterrupt:
            raise WaitingError(again) from None


def _close_decided(store: FeedbackStore, ids: Sequence[int], settings: FlywheelSettings) -> int:
    """Ask nobody else about tasks that are decided; return how many were."""
    if settings.early_stop is None or not ids:
        return 0
    decided = [task.id for task in store.tasks(ids) if settings.early_stop.is_decided(task)]
    for task_id in decided:
        store.close_task(task_id)
    return len(decided)
