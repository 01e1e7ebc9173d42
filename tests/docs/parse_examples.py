"""Parse what the documentation shows, in a process of its own; run by test_docs_snippets.

The tests run under jaxtyping's import hook, which the config parser does not see through; here
nothing is hooked. Reads a JSON object on standard input:

    commands    [[place, words after `lit-rlhf`], ...]
    fragments   [[place, phase, file], ...]: YAML files put behind the phase's own
    modules     [name, ...]: Python files of this folder that must import
    classes     [name, ...]: classes of the package whose defaults are wanted

and writes one with `failures` (place and message) and `defaults` (phase or class -> option ->
value).
"""

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import json
import sys

import jsonargparse

from lit_rlhf.cli import PHASES, main
from lit_rlhf.phase_cli import PhaseCLI, phase_classes, split_dry_run

HOMES = (
    "lit_rlhf.objectives",
    "lit_rlhf.rewards",
    "lit_rlhf.rollout",
    "lit_rlhf.modules",
    "lit_rlhf.modules.sharding",
    "lit_rlhf.callbacks",
    "lit_rlhf.models.backbone",
    "lit_rlhf.demo.vader",
)


class ParserOnly(PhaseCLI):
    """Builds the parser of a phase; parses, makes and runs nothing."""

    def parse_arguments(self, parser, args):
        self.config = {"subcommand": None}

    def _set_seed(self):
        pass

    def before_instantiate_classes(self):
        pass

    def instantiate_classes(self):
        pass

    @property
    def fit_parser(self):
        return self._parsers[0]


class ParsedError(Exception):
    """A command has parsed its arguments; it would run now."""


@functools.cache
def phase_cli(phase):
    return ParserOnly(*phase_classes(phase), args=[])


def parse(words):
    """Parse one command line; return what is wrong with it, or None."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(messages):
            if words[0] in PHASES:
                phase_cli(words[0]).parser.parse_args(split_dry_run(words[1:])[0])
            else:
                parse_other(words)
    except SystemExit as error:
        return None if error.code in (0, None) else messages.getvalue()[-600:]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def parse_other(words):
    """Run a command that is no phase up to the point where its arguments are parsed."""
    parsers = (argparse.ArgumentParser, jsonargparse.ArgumentParser)
    originals = [parser.parse_args for parser in parsers]

    def stopping(parse_args):
        def parse_and_stop(self, *args, **kwargs):
            parse_args(self, *args, **kwargs)
            raise ParsedError

        return parse_and_stop

    for parser, original in zip(parsers, originals, strict=True):
        parser.parse_args = stopping(original)
    try:
        if status := main(words):
            sys.exit(status)
    except ParsedError:
        pass
    finally:
        for parser, original in zip(parsers, originals, strict=True):
            parser.parse_args = original


def phase_defaults(phase):
    flat = vars(phase_cli(phase).fit_parser.get_defaults().as_flat())
    return {
        name.removesuffix(".class_path"): value
        for name, value in flat.items()
        if name.startswith(("model.", "data.", "kl.", "monitor."))
        and ".init_args" not in name
        and "__" not in name  # the parser's own
    }


def class_defaults(name):
    modules = map(importlib.import_module, HOMES)
    found = next(getattr(module, name) for module in modules if hasattr(module, name))
    return {
        parameter.name: "required" if parameter.default is parameter.empty else parameter.default
        for parameter in inspect.signature(found).parameters.values()
    }


def run(request):
    failures = []
    for name in request["modules"]:
        try:
            importlib.import_module(name)
        except Exception as error:
            failures.append([f"{name}.py", f"{type(error).__name__}: {error}"])
    commands = list(request["commands"])
    for place, phase, file in request["fragments"]:
        own = f"--config=configs/{phase.replace('-', '_')}.yaml"
        commands.append([place, [phase, "fit", own, f"--config={file}"]])
    failures += [[place, message] for place, words in commands if (message := parse(words))]
    defaults = {phase: phase_defaults(phase) for phase in PHASES}
    defaults |= {name: class_defaults(name) for name in request["classes"]}
    return {"failures": failures, "defaults": defaults}


if __name__ == "__main__":
    sys.path.insert(0, "")
    answer = run(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(answer, default=str) + "\n")
