"""What the config parser complains about, in one line: where, and what was likely meant."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lit_rlhf.class_changes import made_by, start_anew_on_class_change
from lit_rlhf.errors import ConfigError
from lit_rlhf.renamed import NEW_NAMES, new_name
from lit_rlhf.shipped import name_shipped_files

# What the parser says about the alternatives of a type that were not meant, and its lists.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type|"
    r"-? ?Not a valid subclass of|Subclass types expect one of:|- a class path|- a dict w|"
    r"- Expected a <class 'NoneType'>|- Expected a path but "
)
# How it names what it does not know: an option of a file, of the command line, of a class.
_UNKNOWN_OPTION = re.compile(
    r"does not accept (?:option|nested key) '([\w.+-]+)'|unrecognized arguments: --([\w.+-]+)|"
    r"Option '([\w.+-]+)' is not accepted",
    re.I,
)
_UNKNOWN_ARGUMENT = re.compile(
    r"Problem with given class_path '([\w.]+)':.*?Option '([\w.+]+)' is not accepted", re.S
)
_UNKNOWN_CLASS = re.compile(
    r"Expected a dot import path string: (\w+)|module '[\w.]+' has no attribute '(\w+)'"
)
# What takes settings, or null.
_SWITCH = re.compile(r"Given value: (true|false)$", re.I)
_LEAST_LIKENESS = 0.75  # of a name that may have been meant; 1 is the same
# Where classes that YAML names are at home.
_HOMES = ("objectives", "rewards", "rollout", "callbacks", "modules")


def short_message(message: str) -> str:
    """Return what the config parser complains about, on one line and without what it did not mean.

    Args:
        message: of the parser's error.
    """
    lines = [line.strip() for line in message.splitlines()]
    kept = " ".join(line.removeprefix("- ") for line in lines if line and not _NOISE.match(line))
    kept = re.sub(r'Parser key "([^"]*)":', r"\1:", kept)
    kept = re.sub(r"<class '([\w.]+)'>", r"\1", kept)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"value out of \1", kept) or message


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a command line and its `--config` files.

    Args:
        parser: with `exit_on_error` false.
        arguments: of the command line; `configs/...` are the shipped files.

    Raises:
        ConfigError: an option is unknown, missing, twice in a file or has the wrong type.
    """
    start_anew_on_class_change()
    words = name_shipped_files(arguments)
    with in_plain_words(words, lambda: parser.get_defaults().keys(branches=True)):
        return parser.parse_args(words)


@contextmanager
def in_plain_words(
    arguments: Sequence[str], options: Callable[[], Iterable[str]]
) -> Iterator[None]:
    """Tell what the parser complains about inside as an error of the settings.

    Args:
        arguments: of the command line.
        options: returns the dotted names of all options that there are.

    Raises:
        ConfigError: the parser refuses something, or a key is twice in a file.
    """
    for path in config_files(arguments):
        _key_lines(path)  # refuses a key that is there twice
    try:
        yield
    except ArgumentError as error:
        name = short_message(str(error)).partition(":")[0]
        if f"--{name}=null" in arguments or (f"--{name}", "null") in pairwise(arguments):
            raise ConfigError(of_null(name)) from error
        raise ConfigError(explain(str(error), options(), arguments)) from error


def of_null(name: str) -> str:
    """Return what is wrong with a setting that is null and may not be."""
    return f"{name} is null; give it a value, or leave it out for its default"


def explain(message: str, options: Iterable[str], arguments: Sequence[str]) -> str:
    """Return the parser's complaint with the place in a file, and what was likely meant.

    Args:
        message: of the parser's error.
        options: the dotted names of all options that there are.
        arguments: of the command line, among them `--config` files.
    """
    known, files = list(options), config_files(arguments)
    for old in (name for name in NEW_NAMES if name not in known):
        if place := place_of(old, files):  # before what is missing without it
            return f"{place}there is no option '{old}'{new_name(old)}"
    short = short_message(message)
    if _SWITCH.search(short):
        return f"{short}: this is no switch; write null for none, or its settings"
    if match := _UNKNOWN_ARGUMENT.search(message):
        argument = f"{match[1].rpartition('.')[2]}.{match[2]}"
        made = made_by(match[1])
        parameters = list(inspect.signature(made).parameters) if made else []
        return short + (new_name(argument) or _did_you_mean(match[2], parameters))
    if match := _UNKNOWN_CLASS.search(message):
        name = match[1] or match[2]
        meant = new_name(name) or _did_you_mean(name, _class_names())
        return (
            f"{short}: there is no class '{name}' here{meant}; a class of your own is named by its "
            "dotted path"
        )
    if match := _UNKNOWN_OPTION.search(message):
        name = (match[1] or match[2] or match[3]).partition("=")[0]
        return (
            f"{place_of(name, files)}{short}{new_name(name) or _did_you_mean(name, sorted(known))}"
        )
    return short


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files that a command line names by `--config` or `-c`."""
    files = []
    for word, following in pairwise([*arguments, ""]):
        name, _, value = word.partition("=")
        if name in {"--config", "-c"}:
            files.append(Path(value or following))
    return [path for path in files if path.is_file()]


def untouched_seeds(words: Sequence[str], settings: Mapping[str, Any]) -> str | None:
    """Return a line about the seeds that `--seed_everything` does not set, or None.

    Args:
        words: of the command line.
        settings: of the command.
    """
    names = [word.partition("=")[0] for word in words]
    if "--seed_everything" not in names:
        return None
    seeds = {f"{group}.seed": settings[group].get("seed") for group in ("model", "data")}
    stay = [f"{name} is {seed}" for name, seed in seeds.items() if seed is not None]
    if not stay or any(f"--{name}" in names for name in seeds):
        return None
    return f"--seed_everything seeds fresh heads and adapters alone; {' and '.join(stay)}"


def _key_lines(path: Path) -> dict[str, int]:
    """Return the line of each key of a YAML file by its dotted name.

    Raises:
        ConfigError: it is not YAML, sets nothing, or a key is twice in one mapping. YAML's readers
            would keep the last one and drop the others without a word.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(
            f"{path}:{line}: is no YAML: {error.problem}; correct this line or the one above"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: is no YAML text ({error}); save it as UTF-8") from error
    _refuse_nothing_set(root, path)
    lines: dict[str, int] = {}
    for names, line in _keys(root):
        dotted = ".".join(names)
        if dotted in lines:
            raise ConfigError(
                f"{path}:{line}: the key '{names[-1]}' is already on line {lines[dotted]}; "
                "put both under one key"
            )
        lines[dotted] = line
    return lines


def _refuse_nothing_set(root: yaml.Node | None, path: Path) -> None:
    """Refuse a file without settings by name, and one whose names all have nothing behind them."""
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ConfigError(
            f"{path}: has no settings; write `name: value`, one a line, or leave the file out"
        )
    if all(isinstance(value, yaml.ScalarNode) and not value.value for _, value in root.value):
        key = root.value[0][0]
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: {of_null(key.value)}")


def _keys(node: yaml.Node | None, *parents: str) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys(item, *parents, str(number))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            names = (*parents, str(key.value))
            yield names, key.start_mark.line + 1
            yield from _keys(value, *names)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    """Suggest the nearest known name, by all of it or by its last part."""

    def likeness(option: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, name, option).ratio()
        end, other = name.rpartition(".")[2], option.rpartition(".")[2]
        return max(whole, SequenceMatcher(None, end, other).ratio()), whole

    nearest = max(known, key=likeness, default="")
    if likeness(nearest)[0] < _LEAST_LIKENESS:
        return "; --help lists what there is"
    return f"; did you mean '{nearest}'?"


def _class_names() -> list[str]:
    homes = [importlib.import_module(f"lit_rlhf.{home}") for home in _HOMES]
    return [name for home in homes for name in home.__all__]


def place_of(option: str, files: Sequence[Path]) -> str:
    """Return `FILE:LINE: ` of an option in the last file that has it, or nothing."""
    for path in reversed(files):
        if line := _key_lines(path).get(option):
            return f"{path}:{line}: "
    return ""
