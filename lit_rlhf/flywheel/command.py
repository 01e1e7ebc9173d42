"""The commands `lit-rlhf flywheel run`, `status` and `report`."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.extras import require_extra
from lit_rlhf.markdown import say

if TYPE_CHECKING:
    from lit_rlhf.flywheel.settings import FlywheelSettings

_HELP = """\
usage: lit-rlhf flywheel {run,status,report} --config FILE [--KEY VALUE ...]

Rounds of sample -> choose -> collect -> reward model -> policy -> judge -> promote.
  run      go on with all rounds that are not finished; with people it waits for their judgments
           (--no-wait ends instead, and the same command goes on later)
  status   which step each round is at
  report   one page on all rounds: report.md, report.json and pictures in the run's folder

`lit-rlhf flywheel run --print_config` shows every setting.
"""
COMMANDS = ("run", "status", "report")


def flywheel_command(arguments: list[str]) -> int:
    """Run one of the commands.

    Args:
        arguments: those after `lit-rlhf flywheel`.

    Returns:
        0.

    Raises:
        LitRLHFError: a setting is wrong, people have not judged all tasks, a command failed, or the
            store does not answer.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(f"lit-rlhf flywheel has no command '{name}': {', '.join(COMMANDS)}")
    require_extra("feedback", "lit-rlhf flywheel")
    # What the extra brings.
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415

    from lit_rlhf.feedback.database import parse_url  # noqa: PLC0415
    from lit_rlhf.flywheel.settings import read_settings  # noqa: PLC0415 - seconds of imports

    waits = "--no-wait" not in rest
    words = [word for word in rest if word != "--no-wait"]
    settings = read_settings(words, f"lit-rlhf flywheel {name}")
    try:
        _carry_out(name, settings, waits=waits)
    except DatabaseError as error:  # the disk is full or read-only, the server is gone
        store = parse_url(settings.store_address).render_as_string()
        raise DataError(
            f"{store}: {str(error.orig).strip()}; the same command goes on when it answers again"
        ) from error
    return 0


def _carry_out(name: str, settings: FlywheelSettings, *, waits: bool) -> None:
    if name == "status":
        _show_status(settings)
        return
    if name == "run":
        from lit_rlhf.child_command import run_command  # noqa: PLC0415
        from lit_rlhf.flywheel.beforehand import check_options  # noqa: PLC0415
        from lit_rlhf.flywheel.rounds import run_rounds  # noqa: PLC0415

        check_options(settings)
        run_rounds(settings, say, run_command, waits=waits)
    from lit_rlhf.flywheel.report import write_report  # noqa: PLC0415

    say(str(write_report(settings)))


def _show_status(settings: FlywheelSettings) -> None:
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415 - an optional package
    from lit_rlhf.flywheel.rounds import read_status  # noqa: PLC0415 - seconds of imports

    for number, steps in groupby(read_status(settings), lambda one: one.round):
        said = ", ".join(f"{step.step} {step.state}" for step in steps)
        say(f"round {number}: {said}")
    with FeedbackStore.open(settings.store_address, create=False) as store:
        counts = store.counts()
    say(f"wanted: {counts.open_slots + counts.leased_slots} judgments; made: {counts.current}")
