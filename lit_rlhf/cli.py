"""The command line: `lit-rlhf PHASE COMMAND`, and the commands beside the phases.

Heavy imports stand inside the command that needs them: `lit-rlhf --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from lit_rlhf.errors import LitRLHFError, Preempted

_HELP = """\
usage: lit-rlhf PHASE {fit,validate,test} [--config FILE ...] [--KEY VALUE ...]
       lit-rlhf COMMAND ...

phases
  sft       fine-tune a language model on demonstrations
  reward    train a reward model on human comparisons
  ppo       optimise the policy against a reward, held near the SFT policy
  dpo       optimise the policy on comparisons directly

commands
  demo      fetch a real model and real human ratings, run the whole loop, write a report
  export    write a checkpoint as a Hugging Face folder

`lit-rlhf PHASE fit --help` shows every option of a phase, `lit-rlhf COMMAND --help` of a command.
"""
PHASES = ("sft", "reward", "ppo", "dpo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 1 after an error that was printed, or 2 for a wrong command, or 143
        after SIGTERM, with a checkpoint saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {"demo": _demo, "export": _export}
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    name, rest = words[0], words[1:]
    if name not in commands and name not in PHASES:
        known = ", ".join((*PHASES, *commands))
        sys.stderr.write(f"lit-rlhf: error: no phase or command '{name}'; there are: {known}\n")
        return 2
    try:
        if name in PHASES:
            _phase(name, rest)
            return 0
        return commands[name](rest)
    except Preempted as preempted:
        if preempted.code:
            sys.stderr.write(f"lit-rlhf: {preempted.message}\n")
        return int(preempted.code or 0)
    except LitRLHFError as error:
        if os.environ.get("LIT_RLHF_TRACEBACK"):
            raise
        sys.stderr.write(f"lit-rlhf: error: {error}\n")
        return 1


def _phase(phase: str, arguments: list[str]) -> None:
    from lit_rlhf.phase_cli import run_phase  # noqa: PLC0415 - seconds of imports

    run_phase(phase, arguments)


def _demo(arguments: list[str]) -> int:
    from lit_rlhf.demo.command import demo_command  # noqa: PLC0415 - seconds of imports

    return demo_command(arguments)


def _export(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lit-rlhf export",
        description="Write a checkpoint as a folder that transformers loads: a policy as "
        "AutoModelForCausalLM, a reward model as AutoModelForSequenceClassification.",
    )
    parser.add_argument("checkpoint", help="a .ckpt file of a phase")
    parser.add_argument("folder", help="where to write; must not exist yet")
    options = parser.parse_args(arguments)
    from lit_rlhf.models import export  # noqa: PLC0415 - seconds of imports

    sys.stdout.write(f"{export(options.checkpoint, options.folder)}\n")
    return 0
