"""The command `lit-rlhf data show`: what a phase would make of a file, as tokens."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from lit_rlhf.data import DATA_MODULES
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.data.summary import name_unused
from lit_rlhf.data.tables import read_and_prepare
from lit_rlhf.data.tokenization import Row
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.feedback.meant_fields import unused_fields
from lit_rlhf.markdown import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 500
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def data_command(arguments: list[str]) -> int:
    """Show the rows of a file as tokens.

    Args:
        arguments: those after `lit-rlhf data`.

    Returns:
        0.

    Raises:
        LitRLHFError: the tokenizer cannot be loaded, or a row is not as expected.
    """
    parser = argparse.ArgumentParser(prog="lit-rlhf data", description="Look at training data.")
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser(
        "show",
        description="Show the first rows of a file as tokens, learned ones in green (or in "
        "brackets where this is not a terminal), and count all of them. Look before you train. "
        "Further options are those of the phase's data: --format, --columns, --template, "
        "--max_length and so on, see 'lit-rlhf PHASE fit --help'.",
    )
    show.add_argument("source", metavar="FILE", help="as data.train: a file, folder or hub name")
    show.add_argument("--tokenizer", required=True, help="hub name or folder, as the model's")
    show.add_argument("--phase", choices=DATA_MODULES, default="sft")
    show.add_argument("--rows", type=int, default=3, help="rows to show (default: 3)")
    options, rest = parser.parse_known_args(arguments)
    show_rows(_build(options, rest), options.rows, sys.stdout)
    return 0


def _build(options: argparse.Namespace, rest: list[str]) -> TextDataModule[Any, Any]:
    """Return the phase's data module with further options: `--format` is its `format`."""
    from jsonargparse import ArgumentParser  # noqa: PLC0415 - slow to import

    parser = ArgumentParser(prog="lit-rlhf data show")
    parser.add_class_arguments(DATA_MODULES[options.phase], "data")
    words = [f"--data.tokenizer={options.tokenizer}", f"--data.train={options.source}"]
    for word in rest:
        name, *value = word.split("=", 1)
        if name.startswith("--"):
            name = "--data." + name[2:].removeprefix("data.").replace("-", "_")
        words.append("=".join([name, *value]))
    module: TextDataModule[Any, Any] = parser.instantiate(parser.parse_args(words)).data
    return module


def show_rows(module: TextDataModule[Any, Any], num_shown: int, out: TextIO) -> None:
    """Write the first records of the training data as tokens, and counts of all.

    Args:
        module: makes rows of tokens of records.
        num_shown: how many to show.
        out: where to.

    Raises:
        DataError: a record is not as expected, and is not to be skipped.
    """
    module.load_tokenizer()
    lengths, num_learned, num_records = [], 0, 0
    bad: list[DataError] = []
    unused: Counter[str] = Counter()
    for item in _groups(module, module.open("train")):
        num_records += 1
        if isinstance(item, DataError):
            bad.append(item)
            continue
        (record, where), group = item
        unused.update(unused_fields(record, module.kind, module.used_fields))
        for number, row in enumerate(group.rows, start=1):
            lengths.append(len(row.input_ids))
            num_learned += sum(row.response_mask)
            if num_records <= num_shown:
                which = f", row {number} of {len(group.rows)}" if len(group.rows) > 1 else ""
                out.write(
                    f"{where}{which}: {lengths[-1]} tokens, {sum(row.response_mask)} learned\n"
                    f"{_show(module.tokenizer, row, in_colour=out.isatty())}\n\n"
                )
        if num_records <= num_shown:
            out.writelines(map(_said, group.pairs))
    num_tokens = sum(lengths)
    out.write(
        f"{num_records:,} records, {len(lengths):,} rows, {num_tokens:,} tokens, {num_learned:,} "
        f"learned ({num_learned / max(1, num_tokens):.0%}); the longest row has "
        f"{max(lengths, default=0):,} tokens"
    )
    if module.context_length is not None:
        out.write(f", the model reads {module.context_length:,}")
    out.write("\n")
    if bad:
        out.write(f"{len(bad):,} bad rows are skipped, the first: {bad[0]}\n")
    if unused:
        out.write(name_unused(unused, module.kind) + "\n")


def _groups(
    module: TextDataModule[Any, Any], records: Records
) -> Iterator[tuple[SourcedRecord, GroupExample] | DataError]:
    for start in range(0, len(records), _AT_ONCE):
        columns = records.table[start : start + _AT_ONCE]
        yield from read_and_prepare(records, module, columns)


def _show(tokenizer: PreTrainedTokenizerBase, row: Row, *, in_colour: bool) -> str:
    left, right = (_GREEN, _PLAIN) if in_colour else ("[", "]")
    words = zip(row.input_ids, row.response_mask, strict=True)
    return " ".join(
        f"{left}{_word(tokenizer, token)}{right}" if counts else _word(tokenizer, token)
        for token, counts in words
    )


def _word(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as one visible word: `_` is a space."""
    name, text = str(tokenizer.convert_ids_to_tokens(token)), str(tokenizer.decode([token]))
    if not text or "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character
        text = name
    if name.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
        text = f" {text}"
    return visible(text).replace("\n", "\\n").replace("\t", "\\t").replace(" ", "_")


def _said(pair: JudgedPair) -> str:
    """Write a judgment; a row paired with itself has a label."""
    if pair.chosen == pair.rejected:
        return f"row {pair.chosen + 1} has the label {pair.probability:g}, weight {pair.weight:g}\n"
    said = f"row {pair.chosen + 1} is better than row {pair.rejected + 1} with probability "
    if pair.probability == 0.5:
        said = f"rows {pair.chosen + 1} and {pair.rejected + 1} are a tie: probability "
    return f"{said}{pair.probability:g}, weight {pair.weight:g}" + (
        f", margin {pair.margin:g}\n" if pair.margin else "\n"
    )
