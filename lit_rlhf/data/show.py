"""The command `lit-rlhf data show`: what a phase would make of a file, as tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from lit_rlhf.data.chat_template import read_template_options
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.dpo import DPODataModule
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.data.records import Records
from lit_rlhf.data.reward import RewardDataModule
from lit_rlhf.data.sft import SFTDataModule
from lit_rlhf.data.sources import open_records
from lit_rlhf.data.tokenization import Row
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.markdown import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MODULES: dict[str, type[TextDataModule[Any, Any]]] = {
    "sft": SFTDataModule,
    "reward": RewardDataModule,
    "dpo": DPODataModule,
    "ppo": PPODataModule,
}
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
        "brackets where this is not a terminal), and count all of them. Look before you train.",
    )
    show.add_argument("source", metavar="FILE", help="as data.train: a file, folder or hub name")
    show.add_argument("--tokenizer", required=True, help="hub name or folder, as the model's")
    show.add_argument("--phase", choices=_MODULES, default="sft")
    show.add_argument("--rows", type=int, default=3, help="rows to show (default: 3)")
    show.add_argument("--template", choices=("auto", "chat", "plain"), default="auto")
    show.add_argument(
        "--template-options", type=read_template_options, help="for the template, as JSON"
    )
    show.add_argument("--thinking", choices=("keep", "drop"), default="keep")
    show.add_argument("--learn", choices=("all", "last"), default="all", help="turns, for sft")
    options = parser.parse_args(arguments)
    learn = {"learn": options.learn} if options.phase == "sft" else {}
    module = _MODULES[options.phase](
        options.tokenizer,
        template=options.template,
        template_options=options.template_options,
        thinking=options.thinking,
        **learn,
    )
    records = open_records(options.source, split="train")
    show_rows(module, records, options.rows, sys.stdout)
    return 0


def show_rows(
    module: TextDataModule[Any, Any], records: Records, num_shown: int, out: TextIO
) -> None:
    """Write the first records as tokens, and counts of all.

    Args:
        module: makes rows of tokens of records.
        records: all of them.
        num_shown: how many to show.
        out: where to.

    Raises:
        DataError: a record is not as expected.
    """
    module.load_tokenizer()
    lengths, num_learned, num_records = [], 0, 0
    for where, group in _groups(module, records):
        num_records += 1
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


def _groups(
    module: TextDataModule[Any, Any], records: Records
) -> Iterator[tuple[str, GroupExample]]:
    for start in range(0, len(records), _AT_ONCE):
        chunk = records.read(records.table[start : start + _AT_ONCE])
        groups = module.prepare(chunk)
        yield from zip((where for _, where in chunk), groups, strict=True)


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
    return (
        f"row {pair.chosen + 1} is better than row {pair.rejected + 1} with probability "
        f"{pair.probability:g}, weight {pair.weight:g}\n"
    )
