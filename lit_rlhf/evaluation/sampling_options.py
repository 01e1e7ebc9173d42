"""How a policy responds, as options of the commands that draw several responses to each prompt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_rlhf.ranges import require

if TYPE_CHECKING:
    from lit_rlhf.evaluation.sampling import SamplingConfig


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `sampling_config` reads."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="a response that reaches it is truncated"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="at 0 there is no KL and no entropy"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one gives other responses")
    add_forward_options(parser)


def add_forward_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every forward: how prompts become text, and the precision."""
    parser.add_argument(
        "--template",
        choices=("auto", "chat", "plain"),
        default="auto",
        help="how prompts become text, as in training",
    )
    parser.add_argument(
        "--template-options",
        type=_json_object,
        help="variables for chat templates, as a JSON object",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "32-true", "bf16-mixed"),
        default="auto",
        help="auto: the faster of this machine",
    )


def sampling_config(options: argparse.Namespace, samples: int = 1) -> SamplingConfig:
    """Return the settings that the options give.

    Args:
        options: the parsed command line; of `--precision auto` this machine's faster one is taken.
        samples: responses to each prompt.

    Raises:
        ConfigError: a value is out of range.
    """
    # Seconds of imports, which `--help` can do without.
    from lit_rlhf.evaluation.sampling import SamplingConfig  # noqa: PLC0415
    from lit_rlhf.modules.precision import choose_precision  # noqa: PLC0415

    require("--temperature", options.temperature, least=0)
    return SamplingConfig(
        samples=samples,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        template=options.template,
        template_options=options.template_options,
        precision=choose_precision() if options.precision == "auto" else options.precision,
    )


def _json_object(given: str | dict[str, object]) -> dict[str, object]:
    """Read a text of the command line; in a file it may be a mapping."""
    from lit_rlhf.data.chat_template import read_template_options  # noqa: PLC0415

    return given if isinstance(given, dict) else read_template_options(given)
