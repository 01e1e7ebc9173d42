"""The command `lit-rlhf evaluate`: policies against each other, reward models against people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lit_rlhf.data.chat_template import read_template_options
from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.options import with_config
from lit_rlhf.evaluation.report import Report, as_markdown, write_report
from lit_rlhf.evaluation.runs import evaluate_policies, evaluate_rewards
from lit_rlhf.evaluation.tracking import log_to_wandb
from lit_rlhf.modules.precision import choose_precision

_RUNS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {
    "policies": evaluate_policies,
    "rewards": evaluate_rewards,
}
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="{policies,rewards}")
    parsers = {
        "policies": commands.add_parser(
            "policies", help="policies against each other", description=_POLICIES
        ),
        "rewards": commands.add_parser(
            "rewards", help="reward models against people", description=_REWARDS
        ),
    }
    _add_policies_options(parsers["policies"])
    _add_rewards_options(parsers["rewards"])
    name = arguments[0] if arguments else ""
    words = arguments[1:]
    if name in parsers:
        words = with_config(parsers[name], words)
    options = parser.parse_args([*arguments[:1], *words])
    _check(options)
    if options.precision == "auto":
        options.precision = choose_precision()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    report = _RUNS[options.command](options, folder)
    files = write_report(report, folder, options.page_samples)
    if options.wandb:
        log_to_wandb(report, folder, options.wandb)
    sys.stdout.write(f"{as_markdown(report)}\n")
    sys.stdout.writelines(f"{file}\n" for file in files)
    return 0


def _check(options: argparse.Namespace) -> None:
    numbers = ("max_length", "page_samples", "num_prompts", "num_rows", "perplexity_rows")
    for name in (*numbers, "endpoint_connections"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _add_policies_options(parser: argparse.ArgumentParser) -> None:
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
        ("--max-new-tokens", int, 128, "a response that reaches it is truncated"),
        ("--temperature", float, 1.0, "of the samples; at 0 there is no KL and no entropy"),
        ("--seed", int, 0, "of the samples"),
        ("--tie-margin", float, 0.0, "scores at most this far apart are a tie"),
        ("--endpoint-key-variable", str, "OPENAI_API_KEY", "environment variable with the key"),
        ("--endpoint-connections", int, 4, "requests under way together"),
        ("--endpoint-timeout", float, 60.0, "in seconds"),
    )
    _add_shared(parser, "runs/evaluate/policies")


def _add_rewards_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="[NAME=]SOURCE", help="one or more")
    parser.add_argument("--data", required=True, help="judged pairs or groups")
    _add(
        parser,
        ("--num-rows", int, None, "take the first so many rows"),
        ("--rating-gap", float, None, "accuracy of pairs whose mean ratings are further apart"),
        ("--domain-field", str, "subset", "field with a row's domain"),
    )
    _add_shared(parser, "runs/evaluate/rewards")


def _add_shared(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    for option, choices, text in (
        ("--template", ("auto", "chat", "plain"), "how prompts become text, as in training"),
        ("--precision", ("auto", "32-true", "bf16-mixed"), "auto: the faster of this machine"),
    ):
        parser.add_argument(option, choices=choices, default="auto", help=text)
    _add(
        parser,
        (
            "--template-options",
            read_template_options,
            None,
            "variables for chat templates, as a JSON object",
        ),
        ("--max-length", int, 1024, "tokens that are scored; longer rows are cut"),
        ("--output", Path, Path(output), "folder of the report"),
        ("--page-samples", int, 500, "samples on the HTML page"),
        ("--wandb", str, None, "project of Weights & Biases to log the report to"),
    )


def _add(
    parser: argparse.ArgumentParser, *options: tuple[str, Callable[[str], object], object, str]
) -> None:
    """Add options by name, type, default and help; the help names the default."""
    for name, kind, default, text in options:
        shown = text if default is None else f"{text} (default: {default})"
        parser.add_argument(name, type=kind, default=default, help=shown)
