"""The command line: `lit-rlhf PHASE COMMAND`, and the commands beside the phases.

Heavy imports are inside the command that needs them: `lit-rlhf --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_rlhf import __version__
from lit_rlhf.errors import LitRLHFError, Preempted
from lit_rlhf.extras import require_extra
from lit_rlhf.markdown import visible
from lit_rlhf.quiet import quieten
from lit_rlhf.redaction import redact

_HELP = """\
usage: lit-rlhf PHASE {fit,validate,test,predict} [--config FILE ...] [--KEY VALUE ...]
       lit-rlhf COMMAND ...
       lit-rlhf --version

phases
  sft       fine-tune a language model on demonstrations
  reward    train a reward model on human comparisons
  ppo       optimise the policy against a reward, held near the SFT policy
  dpo       optimise the policy on comparisons directly
  online-dpo  likewise, on pairs of its own responses that a reward ranks

commands
  demo      fetch a real model and real human ratings, run the whole loop, write a report
  evaluate  policies against each other, or reward models against people; writes a report
  feedback  keep people's judgments in a database: import, export, agreement, what to ask next
  flywheel  rounds of judging and training, each from the last policy that is better
  label     serve the page on which people judge responses, invite people
  sample    the best of several responses to each prompt, as data to train on
  chat      talk to a policy in the terminal, or to two side by side
  data      show the first rows of a file as tokens, and what of them is learned
  lineage   show what a model folder was made from: data, models, settings, versions

`lit-rlhf PHASE fit --dry-run ...` says what memory and steps a run needs, and trains nothing.
`lit-rlhf PHASE fit --help` shows every option of a phase, `lit-rlhf COMMAND --help` of a command.
`--verbose` behind a command shows what other packages say as well.
"""
PHASES = ("sft", "reward", "ppo", "dpo", "online-dpo")
# By the module of its function NAME_command, which is imported when it is asked for.
COMMANDS = {
    "demo": "lit_rlhf.demo.command",
    "evaluate": "lit_rlhf.evaluation.command",
    "feedback": "lit_rlhf.feedback_command",
    "flywheel": "lit_rlhf.flywheel.command",
    "label": "lit_rlhf.labelling.command",
    "sample": "lit_rlhf.best_of_n",
    "chat": "lit_rlhf.chat",
    "data": "lit_rlhf.data.show",
    "lineage": "lit_rlhf.cli",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 1 after an error that was printed, or 2 for a wrong command, or 128
        plus the number of a signal: with a checkpoint saved (143 for SIGTERM), or where nobody
        reads the output any longer (141, as with `| head`).
    """
    _open_closed_streams()
    try:
        status = _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_cut():
            raise
        return 128 + signal.SIGPIPE
    return status


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "--version"):
        sys.stdout.write(f"lit-rlhf {__version__}\n" if "--version" in words[:1] else _HELP)
        return 0
    name, rest = words[0], words[1:]
    known = (*PHASES, *COMMANDS)
    if name not in known:
        sys.stderr.write(
            f"lit-rlhf: error: no phase or command '{name}'; there are: {', '.join(known)}\n"
        )
        return 2
    try:
        return _run(name, rest)
    except Preempted as preempted:
        if preempted.code:
            sys.stderr.write(f"lit-rlhf: {preempted.message}\n")
        return int(preempted.code or 0)
    except LitRLHFError as error:
        if os.environ.get("LIT_RLHF_TRACEBACK"):
            raise
        sys.stderr.write(f"lit-rlhf: error: {redact(str(error))}\n")
        return 1


def _open_closed_streams() -> None:
    """Read nothing, and write nowhere, where the terminal is closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - stays open
            setattr(sys, name, stream)


def _stdout_is_cut() -> bool:
    """Tell whether nobody reads the output any longer, and write nowhere then."""
    watch = select.poll()
    watch.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _run(name: str, arguments: list[str]) -> int:
    if "--verbose" not in arguments:
        quieten()  # before the imports, which have much to say
    arguments = [word for word in arguments if word != "--verbose"]
    if name in PHASES:
        from lit_rlhf.phase_cli import run_phase  # noqa: PLC0415 - seconds of imports

        run_phase(name, arguments)
        return 0
    if name == "demo":
        require_extra("demo", "lit-rlhf demo")
    command: Callable[[list[str]], int]
    command = getattr(importlib.import_module(COMMANDS[name]), f"{name}_command")
    return command(arguments)


def lineage_command(arguments: list[str]) -> int:
    """Print what a model folder was made from."""
    parser = argparse.ArgumentParser(
        prog="lit-rlhf lineage",
        description="Show what a model was made from: data with their hashes, the models it "
        "started from and what those were made from, settings, versions.",
    )
    parser.add_argument("folder", help="a model folder of a phase, such as runs/sft/model")
    parser.add_argument("--json", action="store_true", help="all of it, settings included")
    options = parser.parse_args(arguments)
    from lit_rlhf.models.lineage import read_lineage, render_lineage  # noqa: PLC0415 - as above

    lineage = read_lineage(options.folder)
    lines = [json.dumps(lineage, indent=1)] if options.json else render_lineage(lineage)
    sys.stdout.writelines(f"{visible(line)}\n" for line in lines)
    return 0
