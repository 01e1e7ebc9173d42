"""The command `lit-rlhf feedback`: files into the feedback store, and out of it."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from lit_rlhf.errors import DataError
from lit_rlhf.extras import require_extra
from lit_rlhf.feedback.exchange import full_row, trl_rows
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.task_files import read_tasks_of_file
from lit_rlhf.feedback_command.choosing import add_choose_options, add_chosen
from lit_rlhf.feedback_command.exporting import write_export
from lit_rlhf.feedback_command.reports import agreement, show
from lit_rlhf.feedback_command.sampling import add_sample_options, add_samples
from lit_rlhf.markdown import say
from lit_rlhf.whole_files import written_whole


def feedback_command(arguments: list[str]) -> int:
    """Run one of the commands on a store.

    Args:
        arguments: those after `lit-rlhf feedback`.

    Returns:
        0.

    Raises:
        LitRLHFError: a file, a row or the store is not as it must be.
    """
    options = _parser().parse_args(arguments)
    require_extra("feedback", "lit-rlhf feedback")
    run: dict[str, Callable[[argparse.Namespace], None]] = {
        "import": _import,
        "sample": _sample,
        "export": _export,
        "show": _show,
        "agreement": _agreement,
        "choose": _choose,
        "backup": _backup,
    }
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - an optional package

    from lit_rlhf.feedback.database import parse_url  # noqa: PLC0415

    try:
        run[options.command](options)
    except DatabaseError as error:  # the disk is full or read-only, the server is gone
        store = parse_url(options.store).render_as_string()
        raise DataError(f"{store}: {str(error.orig).strip()}") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-rlhf feedback",
        description="Keep what people say about responses. STORE is a file such as feedback.db, or "
        "postgresql://USER@HOST/NAME.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("import", help="add the rows of a file to a store")
    add.add_argument("file", type=Path, help="a file or folder in any shape of docs/data.md")
    add.add_argument("store")
    add.add_argument("--format", default="auto", help="of the rows (default: found by their keys)")
    add.add_argument("--bad-rows", choices=("refuse", "skip"), default="refuse")
    add.add_argument("--slots", type=int, default=0, help="labelers to ask about each task")
    add.add_argument(
        "--judges", action="store_true", help="the labelers of this file are models, not people"
    )
    add_sample_options(
        commands.add_parser("sample", help="add tasks of what a policy says to prompts")
    )
    give = commands.add_parser("export", help="write the judged tasks of a store")
    give.add_argument("store")
    give.add_argument(
        "file", type=Path, help=".jsonl, .parquet, or a new folder with a Parquet file a split"
    )
    give.add_argument("--format", choices=("ours", "trl"), default="ours")
    give.add_argument("--split", help="train, validation or test (default: all)")
    give.add_argument("--question", help="the answers to this one ('': the one without a name)")
    look = commands.add_parser("show", help="how much of everything is there")
    look.add_argument("store")
    look.add_argument(
        "--disagreements", type=int, metavar="N", help="the tasks that split the labelers most"
    )
    agree = commands.add_parser("agreement", help="how far the labelers agree, with intervals")
    agree.add_argument("store")
    agree.add_argument("--by", choices=("labeler", "kind", "week"), help="(default: all together)")
    add_choose_options(
        commands.add_parser("choose", help="add tasks of the pairs most worth judging")
    )
    copy = commands.add_parser("backup", help="copy a SQLite store while others write to it")
    copy.add_argument("store")
    copy.add_argument("file", type=Path)
    return parser


def _import(options: argparse.Namespace) -> None:
    from lit_rlhf.feedback.formats import check_format  # noqa: PLC0415
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415 - an optional package

    check_format(options.format)
    num_skipped = 0

    def tasks() -> Iterator[JudgedTask]:
        nonlocal num_skipped
        for task in read_tasks_of_file(options.file, options.format, options.bad_rows):
            if task is None:
                num_skipped += 1
            else:
                yield task

    with FeedbackStore.filling(options.store) as store:
        added = store.add_tasks(
            tasks(), slots=options.slots, labeler_kind="model" if options.judges else "person"
        )
    said = f"{added.tasks} new tasks, {added.judgments} new judgments"
    said += f"; {num_skipped} bad rows skipped" if num_skipped else ""
    said += f"; {added.unasked} asked of nobody: their responses are alike" if added.unasked else ""
    say(said)


def _sample(options: argparse.Namespace) -> None:
    say(add_samples(options))


def _export(options: argparse.Namespace) -> None:
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415

    with FeedbackStore.open(options.store, create=False) as store:
        if options.format == "trl" or options.question is not None:
            store.check_question(options.question)

        def rows(split: str | None) -> Iterator[dict[str, object]]:
            for task in store.judged_tasks(split, options.question):
                is_ours = options.format == "ours"
                yield from [full_row(task)] if is_ours else trl_rows(task, options.store)

        try:
            num_rows = write_export(options.file, rows, options.split)
        except OSError as error:  # the disk is full or read-only, the folder another's
            reason = error.strerror or error
            raise DataError(f"{options.file}: cannot be written: {reason}") from error
    say(f"{num_rows} rows in {options.file}")


def _show(options: argparse.Namespace) -> None:
    for line in show(options):
        say(line)


def _agreement(options: argparse.Namespace) -> None:
    for line in agreement(options):
        say(line)


def _choose(options: argparse.Namespace) -> None:
    say(add_chosen(options))


def _backup(options: argparse.Namespace) -> None:
    from lit_rlhf.feedback.database import parse_url  # noqa: PLC0415

    url = parse_url(options.store)
    if url.get_backend_name() != "sqlite":
        raise DataError(f"{url.render_as_string()}: use pg_dump to back up a PostgreSQL store.")
    source = Path(url.database or "")
    if not source.is_file():
        raise DataError(f"{source}: there is no such feedback store.")
    if options.file.exists():
        raise DataError(f"{options.file}: is there already; name a file that is not.")
    try:
        with (
            written_whole(options.file) as partial,
            closing(sqlite3.connect(source)) as live,
            closing(sqlite3.connect(partial)) as copy,
        ):
            live.backup(copy)
    except sqlite3.Error as error:
        raise DataError(f"{source}: cannot be copied to {options.file}: {error}") from error
    say(f"{source} is copied to {options.file}")
