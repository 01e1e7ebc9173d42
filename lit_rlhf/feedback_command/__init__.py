"""The command `lit-rlhf feedback`: files into the feedback store, and out of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from lit_rlhf.errors import DataError
from lit_rlhf.extras import require_extra
from lit_rlhf.feedback_command.choosing import add_choose_options, add_chosen
from lit_rlhf.feedback_command.sampling import add_sample_options, add_samples
from lit_rlhf.markdown import say


def feedback_command(arguments: list[str]) -> int:
    """Run one of the commands on a store, and print the lines that it says.

    Args:
        arguments: those after `lit-rlhf feedback`.

    Returns:
        0.

    Raises:
        LitRLHFError: a file, a row or the store is not as it must be.
    """
    options = _parser().parse_args(arguments)
    require_extra("feedback", "lit-rlhf feedback")
    # What the extra brings.
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415

    from lit_rlhf.feedback.database import parse_url  # noqa: PLC0415
    from lit_rlhf.feedback_command import files, reports  # noqa: PLC0415

    commands: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
        "import": files.import_file,
        "sample": add_samples,
        "export": files.export_file,
        "show": reports.show,
        "agreement": reports.agreement,
        "choose": add_chosen,
        "backup": files.backup,
    }
    try:
        for line in commands[options.command](options):
            say(line)
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
