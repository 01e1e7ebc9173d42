"""The command `lit-rlhf evaluate`: policies against each other, reward models against people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.options import with_config
from lit_rlhf.evaluation.report import Report, as_markdown, write_report
from lit_rlhf.evaluation.runs import evaluate_policies, evaluate_rewards
from lit_rlhf.evaluation.tracking import log_to_wandb
from lit_rlhf.modules.precision import choose_precision

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_RUNS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {
    "policies": evaluate_policies,
    "rewards": evaluate_rewards,
}
_POLICIES = """\
Compare policies on the same prompts. A policy is [NAME=]SOURCE: a checkpoint, a Hugging Face
folder or hub name, or a .jsonl file of responses (prompt, response). A judge is
[NAME=]reward:PATH, [NAME=]function:DOTTED.PATH or [NAME=]endpoint:ADDRESS#MODEL."""
_REWARDS = """\
Compare reward models with people's judgments: judged groups, comparisons, or rows in
RewardBench's format (prompt, chosen, rejected, subset), from a file, a folder or a hub name.
A model is [NAME=]SOURCE: a checkpoint, a folder, or function:DOTTED.PATH."""


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
    parsers = {"policies": _policies_parser(commands), "rewards": _rewards_parser(commands)}
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


def _policies_parser(commands: Subparsers) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "policies", help="policies against each other", description=_POLICIES
    )
    parser.add_argument("policies", nargs="+", metavar="[NAME=]SOURCE", help="two or more, or one")
    parser.add_argument("--prompts", help="data with prompts (default: those of the first file)")
    parser.add_argument("--num-prompts", type=int, help="take the first so many")
    parser.add_argument(
        "--judge", action="append", default=[], metavar="[NAME=]KIND:WHERE", help="may be repeated"
    )
    parser.add_argument("--reference", help="policy that the KL of sampled policies is to")
    parser.add_argument("--perplexity-data", help="held-out demonstrations or texts")
    parser.add_argument("--perplexity-rows", type=int, help="take the first so many of them")
    parser.add_argument(
        "--samples",
        action="append",
        default=[],
        metavar="[NAME=]N",
        help="responses to each prompt (default: 1), of all policies or of one; above 1: best of n",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument(
        "--tie-margin", type=float, default=0.0, help="scores at most this far apart are a tie"
    )
    parser.add_argument(
        "--endpoint-key-variable",
        default="OPENAI_API_KEY",
        help="environment variable with the endpoint's key (default: OPENAI_API_KEY)",
    )
    parser.add_argument("--endpoint-connections", type=int, default=4)
    parser.add_argument("--endpoint-timeout", type=float, default=60.0, help="in seconds")
    _add_shared(parser, "runs/evaluate/policies")
    return parser


def _rewards_parser(commands: Subparsers) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "rewards", help="reward models against people", description=_REWARDS
    )
    parser.add_argument("models", nargs="+", metavar="[NAME=]SOURCE", help="one or more")
    parser.add_argument("--data", required=True, help="judged pairs or groups")
    parser.add_argument("--num-rows", type=int, help="take the first so many rows")
    parser.add_argument(
        "--rating-gap", type=float, help="accuracy of pairs whose mean ratings are further apart"
    )
    parser.add_argument(
        "--domain-field", default="subset", help="field with a row's domain (default: subset)"
    )
    _add_shared(parser, "runs/evaluate/rewards")
    return parser


def _add_shared(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument(
        "--template",
        choices=("auto", "chat", "plain"),
        default="auto",
        help="how prompts become text, as in the data modules (default: auto)",
    )
    parser.add_argument(
        "--max-length", type=int, default=1024, help="tokens that are scored; longer rows are cut"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "32-true", "bf16-mixed"),
        default="auto",
        help="auto: the faster one of this machine",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help=f"(default: {output})")
    parser.add_argument("--page-samples", type=int, default=500, help="samples on the HTML page")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the report to Weights & Biases")
