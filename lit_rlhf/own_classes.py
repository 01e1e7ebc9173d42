"""Classes of your own in place of a phase's module or data module: `--model my_module.MySFT`.

They are looked for before the command line is parsed, so that the parser is made for them: their
options stand where those of the default class would, on the command line and in files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from lit_rlhf.config_messages import config_files
from lit_rlhf.errors import ConfigError
from lit_rlhf.rewards.importing import find_in_working_folder, import_function

Class = TypeVar("Class", bound=type)
GROUPS = ("model", "data")
_CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*[.:][A-Za-z_]\w*|.+\.py:[A-Za-z_]\w*")
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def find_classes(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Find the classes that a command line and its files name; the command line wins.

    Returns:
        "model" or "data" -> the class that is named, if one is; and the command line with
        `--model.class_path` for `--model`.

    Raises:
        ConfigError: a file has `init_args` beside `class_path`.
    """
    paths = {group: path for file in config_files(arguments) for group, path in _named_in(file)}
    plain, is_value = [], False
    for index, word in enumerate(arguments):
        group, mark, value = word.removeprefix("--").partition("=")
        if is_value:
            is_value = False
            continue
        if not mark and index + 1 < len(arguments):
            value = arguments[index + 1]
        if word.startswith("--") and group in GROUPS and _is_class_path(value):
            paths[group], is_value = value, not mark
            plain.append(f"--{group}.class_path={value}")
        else:
            plain.append(word)
    return paths, plain


def load_class(path: str | None, default: Class, base: type, group: str) -> Class:
    """Return the class that a path names, or the default for None.

    Args:
        path: `package.module.Class`, `package.module:Class` or `path/to/file.py:Class`; a module is
            found in the working directory, too.
        default: the phase's own.
        base: what the class must be a subclass of.
        group: "model" or "data".

    Raises:
        ConfigError: it cannot be imported, or is no subclass of `base`.
    """
    if path is None:
        return default
    find_in_working_folder()
    how = f"give --{group} my_module.MyClass or path/to/file.py:MyClass"
    cls = import_function(path, what="class", how=how)
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise ConfigError(f"{group}: {path} is no subclass of {base.__name__}")
    return cls  # type: ignore[return-value]  # checked just before


def _is_class_path(value: str) -> bool:
    is_file = value.endswith(_CONFIG_SUFFIXES) or Path(value).is_file()
    return not is_file and _CLASS_PATH.fullmatch(value) is not None


def _named_in(file: Path) -> Iterator[tuple[str, str]]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return  # the parser says so
    for group in GROUPS:
        own = settings.get(group) if isinstance(settings, dict) else None
        if isinstance(own, dict) and isinstance(own.get("class_path"), str):
            if "init_args" in own:
                raise ConfigError(
                    f"{file}: {group}: write the arguments beside class_path, without init_args"
                )
            yield group, own["class_path"]
