"""The loop: one round after the other, each from the last promoted policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from filelock import FileLock, Timeout

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel.beforehand import check_settings
from lit_rlhf.flywheel.one_round import OPTIONAL_STEPS, STEPS, Round, Run, Start, record_path
from lit_rlhf.flywheel.settings import FlywheelSettings
from lit_rlhf.flywheel.steps import is_finished, read_json, reading, write_json
from lit_rlhf.modules.precision import Precision, choose_precision


def run_rounds(
    settings: FlywheelSettings, say: Callable[[str], None], run: Run, *, waits: bool
) -> None:
    """Run all rounds that are not finished.

    Killed at any moment and started again, it skips the steps that are finished, and its end state
    is that of a run that was not killed.

    Args:
        settings: of the run.
        say: prints a line.
        run: runs a command of `lit-rlhf` in a process of its own.
        waits: wait for people; else end where judgments are missing.

    Raises:
        WaitingError: `waits` is false, and people have not judged all tasks of a round.
        ConfigError: a finished step had other settings or its output is not there any more,
            another process runs them, or what a setting names is missing.
        DataError: there are no two held-out prompts, or some are training prompts.
        TrainingError: a command failed.
    """
    check_settings(settings)
    start = Start(1, settings.sft)
    with _alone_in(settings.path), FeedbackStore.open(settings.store_address) as store:
        settings = with_precision(settings)
        for number in range(1, settings.rounds + 1):
            say(f"round {number} of {settings.rounds}, from the policy of {start.policy_of}")
            own = Round(settings, start, store, say, run)
            own.sample()
            own.choose()
            own.collect(waits=waits)
            own.train_reward()
            own.refresh()
            own.train_policy()
            own.judge()
            own.measure()
            start = next_start(start, own.folder, is_promoted=own.promote())
            say(_outcome(number, own.folder))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run as long as this process lives: two would mix their steps."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: another `lit-rlhf flywheel run` is at work here; let it end, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def next_start(start: Start, folder: Path, *, is_promoted: bool) -> Start:
    """Return what the next round begins with.

    A policy that was not promoted is left behind; its round's judgments and reward model stay.

    Args:
        start: what the round began with.
        folder: of the round.
        is_promoted: what the gate said of its policy.
    """
    after = start._replace(
        number=start.number + 1,
        reward=str(folder / "reward" / "model"),
        judged=folder / "judged",
    )
    if not is_promoted:
        return after
    return after._replace(
        policy=str(folder / "policy" / "model"), policy_of=f"round {start.number}"
    )


class StepState(NamedTuple):
    """How far a step is: `state` is "finished", "under way" or "to do"."""

    round: int
    step: str
    state: str


def read_status(settings: FlywheelSettings) -> Iterator[StepState]:
    """Yield the state of every step of every round that began, and of the first one.

    Raises:
        ConfigError: there is no such run.
    """
    if not settings.round_folder(1).is_dir():
        raise ConfigError(
            f"{settings.path}: no round has begun; start one by `lit-rlhf flywheel run`"
        )
    for number in range(1, settings.rounds + 1):
        folder = settings.round_folder(number)
        skipped = OPTIONAL_STEPS if settings.refresh is None else ()
        for step in STEPS if folder.is_dir() else ():
            if step in skipped:
                continue
            begun = record_path(folder, step).exists()
            state = (
                "finished"
                if is_finished(record_path(folder, step))
                else "under way"
                if begun
                else "to do"
            )
            yield StepState(number, step, state)


def with_precision(settings: FlywheelSettings) -> FlywheelSettings:
    """Choose the precision once: by another one a resumed run would end otherwise."""
    if settings.precision != "auto":
        return settings
    path = settings.path / "precision.json"
    if not path.exists():
        write_json(path, choose_precision())
    with reading(path, "delete it, and it is chosen again"):
        (chosen,) = {read_json(path)} & set(get_args(Precision))
    return replace(settings, precision=chosen)


def _outcome(number: int, folder: Path) -> str:
    found = read_json(folder / "promotion.json")
    gain, interval = Figure("", "", "", Estimate.from_json(found["gain"])).shown()
    said = f"gain {gain} ({interval}), KL {found['kl']:.2f}"
    if found["is_promoted"]:
        return f"round {number}: promoted, {said}"
    return f"round {number}: not promoted, {said}: {'; '.join(found['reasons'])}"
