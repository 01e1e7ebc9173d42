"""The command `lit-rlhf evaluate`: policies against each other, reward models against people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_loader

from lit_rlhf.config_messages import parse
from lit_rlhf.errors import LitRLHFError
from lit_rlhf.evaluation.figures import Report
from lit_rlhf.evaluation.options import read_option_file
from lit_rlhf.evaluation.report import as_markdown, write_report
from lit_rlhf.evaluation.runs import evaluate_policies, evaluate_rewards
from lit_rlhf.evaluation.sampling_options import add_forward_options, add_sampling_options
from lit_rlhf.evaluation.tracking import log_to_wandb
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.ranges import require

# Of the files of options: keys with dashes, and names with sources.
_PARSER_MODE = "lit_rlhf_options"
set_loader(_PARSER_MODE, read_option_file)
_POLICIES = """\
Compare policies on the same prompts. A policy is [NAME=]SOURCE: a Hugging Face folder
or hub name, or a .jsonl file of responses (prompt, response). A judge is
[NAME=]reward:PATH, [NAME=]function:DOTTED.PATH or [NAME=]endpoint:ADDRESS#MODEL."""
_REWARDS = """\
Compare reward models with people's judgments: judged groups, comparisons, or rows in
RewardBench's format (prompt, chosen, rejected, subset), from a file, a folder or a hub name.
A model is [NAME=]SOURCE: a folder or hub name, or function:DOTTED.PATH."""


def evaluate_command(arguments: list[str]) -> int:
    """Evaluate, and leave a report.

    Args:
        arguments: those after `lit-rlhf evaluate`.

    Returns:
        0.

    Raises:
        LitRLHFError: a model, a file, a judge or an option is not as it must be.
    """
    parser = argparse.ArgumentParser(
        prog="lit-rlhf evaluate",
        description="Judge policies or reward models, and write a report.",
    )
    text = "policies against each other, or reward models against people"
    parser.add_argument("command", choices=tuple(_COMMANDS), help=text)
    parser_of, run = _COMMANDS[parser.parse_args(arguments[:1]).command]
    options = parse(parser_of(), arguments[1:])
    _check(options)
    if options.precision == "auto":
        options.precision = choose_precision()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    report = run(options, folder)
    # First of all: a full disk must not cost what was measured.
    sys.stdout.write(f"{as_markdown(report)}\n")
    sys.stdout.flush()
    try:
        files = write_report(report, folder, options.page_samples)
    except OSError as error:
        raise LitRLHFError(
            f"{folder}: the report cannot be written ({error.strerror}); it is printed above"
        ) from error
    if options.wandb:
        log_to_wandb(report, folder, options.wandb)
    sys.stdout.writelines(f"{file}\n" for file in files)
    return 0


def _check(options: Namespace) -> None:
    numbers = ("max_length", "page_samples", "num_prompts", "num_rows", "perplexity_rows")
    for name in (*numbers, "endpoint_connections"):
        if (value := getattr(options, name, None)) is not None:
            require(f"--{name.replace('_', '-')}", value, least=1)


def _policies_parser() -> ArgumentParser:
    parser = _new_parser("policies", _POLICIES)
    parser.add_argument("policies", nargs="+", metavar="[NAME=]SOURCE", help="two or more, or one")
    for option, form, text in (
        ("--judge", "[NAME=]KIND:WHERE", "may be repeated"),
        ("--samples", "[NAME=]N", "responses to each prompt, default 1; above 1: best of n"),
    ):
        parser.add_argument(option, action="append", default=[], metavar=form, help=text)
    _add(
        parser,
        ("--prompts", str, None, "data with prompts (default: those of the first file)"),
        ("--num-prompts", int, None, "take the first so many"),
        ("--reference", str, None, "policy that the KL of sampled policies is to"),
        ("--perplexity-data", str, None, "held-out demonstrations or texts"),
        ("--perplexity-rows", int, None, "take the first so many of them"),
        ("--tie-margin", float, 0.0, "scores at most this far apart are a tie"),
        ("--endpoint-key-variable", str, "OPENAI_API_KEY", "environment variable with the key"),
        ("--endpoint-connections", int, 4, "requests under way together"),
        ("--endpoint-timeout", float, 60.0, "in seconds"),
    )
    add_sampling_options(parser)
    _add_report_options(parser, "runs/evaluate/policies")
    return parser


def _rewards_parser() -> ArgumentParser:
    parser = _new_parser("rewards", _REWARDS)
    parser.add_argument("models", nargs="+", metavar="[NAME=]SOURCE", help="one or more")
    parser.add_argument("--data", required=True, help="judged pairs or groups")
    _add(
        parser,
        ("--num-rows", int, None, "take the first so many rows"),
        ("--rating-gap", float, None, "accuracy of pairs whose mean ratings are further apart"),
        ("--domain-field", str, "subset", "field with a row's domain"),
    )
    add_forward_options(parser)
    _add_report_options(parser, "runs/evaluate/rewards")
    return parser


def _new_parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"lit-rlhf evaluate {command}",
        description=description,
        exit_on_error=False,
        parser_mode=_PARSER_MODE,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    return parser


def _add_report_options(parser: ArgumentParser, output: str) -> None:
    _add(
        parser,
        ("--max-length", int, 1024, "tokens that are scored; longer rows are cut"),
        ("--output", Path, Path(output), "folder of the report"),
        ("--page-samples", int, 500, "samples on the HTML page"),
        ("--wandb", str, None, "project of Weights & Biases to log the report to"),
    )


def _add(parser: ArgumentParser, *options: tuple[str, type, object, str]) -> None:
    for name, kind, default, text in options:
        parser.add_argument(name, type=kind, default=default, help=text)


_COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace, Path], Report]]] = {
    "policies": (_policies_parser, evaluate_policies),
    "rewards": (_rewards_parser, evaluate_rewards),
}
